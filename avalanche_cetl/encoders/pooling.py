"""How the maps or tokens of a layer become one feature vector an image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.common.channel_axis import channels_second


def check_pool(pool: str | int | None, layer: int | str | None) -> None:
    """Raise ValueError unless ``pool`` is one that a layer's output, or the head's, can have."""
    if isinstance(pool, int) and pool < 1:
        raise ValueError(f"pool={pool}: the side of a grid has to be >= 1.")
    if layer is not None and isinstance(pool, str) and pool not in ("avg", "max"):
        raise ValueError(f"pool={pool!r}: with layer=, 'avg', 'max' or the side of a grid.")


def pooled(
    output: Tensor,
    pool: str | int | None,
    *,
    axis: int | None,
    channels_last: bool,
    prefix_tokens: int,
    name: str,
) -> Tensor:
    """Return one vector an image from a layer's output.

    :param output: vectors ``(N, D)``, which are returned as they are; tokens ``(N, L, D)``; or
        maps.
    :param pool: ``"avg"`` or None, ``"max"``, or a side g: the average over a g x g grid,
        flattened.
    :param axis: where the output's channels are; None for timm's own rule: last in tokens, and in
        maps by ``channels_last``.
    :param channels_last: of maps, where ``axis`` is None.
    :param prefix_tokens: tokens before those of the image's places (the class's).
    :param name: of the model, for errors.
    :return: ``(N, D)``, with a grid ``(N, D g^2)``.
    :raises ValueError: for an output that has no pooling, or tokens that are no square.
    """
    if output.dim() == 2:
        return output
    if axis is not None:
        output = channels_second(output, axis)
        output = output.transpose(1, 2) if output.dim() == 3 else output
    if output.dim() == 3:
        if not isinstance(pool, int):
            return output.amax(1) if pool == "max" else output.mean(1)
        output = _token_grid(output, prefix_tokens, name)
    if output.dim() != 4:
        raise ValueError(f"{name!r} gives {tuple(output.shape[1:])}, which has no pooling.")
    if channels_last:
        output = output.permute(0, 3, 1, 2)
    if pool == "max":
        return output.amax((2, 3))
    return F.adaptive_avg_pool2d(output, pool if isinstance(pool, int) else 1).flatten(1)


def _token_grid(tokens: Tensor, prefix_tokens: int, name: str) -> Tensor:
    side = int((tokens.shape[1] - prefix_tokens) ** 0.5)
    if side * side != tokens.shape[1] - prefix_tokens:
        raise ValueError(f"{name!r} gives {tokens.shape[1]} tokens, which are no square.")
    grid = tokens[:, prefix_tokens:].transpose(1, 2)
    return grid.reshape(len(tokens), -1, side, side)
