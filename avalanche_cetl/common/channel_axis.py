"""Which axis of a layer's output holds the channels: the second (N, C, H, W) or the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from avalanche_cetl.common.hooks import watched

POOLINGS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
)
_SECOND = (
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    *POOLINGS,
    nn.Upsample,
    nn.PixelShuffle,
)
_Known = tuple[tuple[int, ...], int]


def channel_axis(network: nn.Module, layer: nn.Module, run: Callable[[], Any]) -> int | None:
    """Return the axis of a layer's output that holds the channels, seen in one forward pass.

    A convolution, a BatchNorm or a pooling has them second, a linear layer or a LayerNorm last.
    Any other layer (a block, an activation) is judged by the latest such layer that ran in it or
    before it: an axis that kept that one's positions is one of positions, and one that kept its
    channels one of channels. So a block that computes with channels last and turns its map round
    before it returns it (ConvNeXt, MaxViT) is read rightly too.

    :param network: whose layers are watched.
    :param layer: one of its modules.
    :param run: runs the network on a batch, best in eval mode and without gradient.
    :return: 1, or the last axis (2 or 3); None where the sizes leave both open, e.g. as many
        channels as rows and columns, or where the output is no map and no sequence of tokens.
        Tokens ``(N, L, C)`` are taken to have their channels last unless they are seen not to.
    """
    known: list[_Known] = []
    found: list[tuple[tuple[int, ...], list[_Known]]] = []

    def see(module: nn.Module, output: Any) -> None:
        axis = own_axis(module)
        if axis is not None and isinstance(output, Tensor) and output.dim() in (3, 4):
            known.append((tuple(output.shape), axis % output.dim()))

    def finish(_layer: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append((tuple(output.shape), list(known)))

    layers = (module for module in network.modules() if own_axis(module) is not None)
    with watched(layers, see), watched([layer], finish):
        run()
    if not found:
        return None
    shape, before = found[-1]
    if len(shape) == 4:
        return _axis_of_map(shape, before)
    return _axis_of_tokens(shape, before) if len(shape) == 3 else None


def own_axis(layer: nn.Module) -> int | None:
    """Return 1 or -1 for a layer that has its channels second or last by its kind, else None."""
    if isinstance(layer, _SECOND):
        return 1
    if hasattr(layer, "normalized_shape"):  # LayerNorm, RMSNorm, and their variants for maps
        return 1 if "2d" in type(layer).__name__.lower() else -1
    return -1 if isinstance(layer, nn.Linear) else None


def channels_second(output: Tensor, axis: int | None) -> Tensor:
    """Return a map or tokens with the channels in the second axis; others as they are."""
    return output if axis is None or output.dim() < 3 else output.movedim(axis, 1)


def _axis_of_map(shape: tuple[int, ...], known: list[_Known]) -> int | None:
    if all(axis == 1 for _, axis in known):
        return 1
    seen, axis = known[-1]
    channels = seen[axis]
    positions = [size for place, size in enumerate(seen) if place not in (0, axis)]
    if len(seen) == 4:
        kept = {1: list(shape[2:]) == positions, 3: list(shape[1:3]) == positions}
    else:
        kept = {
            1: shape[1] == channels and [shape[2] * shape[3]] == positions,
            3: shape[3] == channels and [shape[1] * shape[2]] == positions,
        }
    return _only(kept) or _only({1: shape[1] == channels, 3: shape[3] == channels})


def _axis_of_tokens(shape: tuple[int, ...], known: list[_Known]) -> int:
    if not known or known[-1][0] == shape:
        return known[-1][1] if known else 2
    seen, axis = known[-1]
    channels = seen[axis]
    return _only({1: shape[1] == channels, 2: shape[2] == channels}) or 2


def _only(fits: dict[int, bool]) -> int | None:
    """Return the one axis that fits; None for both or none."""
    axes = [axis for axis, fit in fits.items() if fit]
    return axes[0] if len(axes) == 1 else None
