"""Closed forms: per-sample gradients of a layer's weights from its input and output gradient.

A weight's per-sample gradient is mostly a sum of outer products over positions (tokens,
pixels): ``G_n = sum_t left[n, :, t] right[n, t, :]``. Layers give these two factors; with a
single position the squares of ``G`` never need ``G`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.information.gradients.recurrent import RECURRENT, unrolled


class Factors(NamedTuple):
    """Per-sample gradients as sums of outer products.

    :ivar left: ``(n, O, T)``, or ``(n, G, O, T)`` for G groups.
    :ivar right: ``(n, T, I)``, or ``(n, G, T, I)``.
    :ivar restore: maps ``(..., O, I)`` (or ``(..., G, O, I)``) to ``(..., *weight.shape)``.
    """

    left: Tensor
    right: Tensor
    restore: Callable[[Tensor], Tensor]


def linear(module: nn.Linear, x: Tensor, g: Tensor) -> Factors:
    """``nn.Linear`` on vectors ``(n, I)`` or any number of positions ``(n, ..., I)``."""
    left = g.reshape(len(g), -1, g.shape[-1]).transpose(1, 2)
    return Factors(left, x.reshape(len(x), -1, x.shape[-1]), lambda t: t)


def convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, g: Tensor) -> Factors:
    """Convolution in one to three dimensions, with any stride, padding, dilation, groups."""
    before_after = _padding(module)
    if any(before_after):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, before_after, mode=mode)
    return _correlation(module, small=g, large=x, leading=g.shape[1])


def transposed_convolution(
    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor, g: Tensor
) -> Factors:
    """Transposed convolution: input and output gradient trade places."""
    padding = [int(p) for p in module.padding]
    g = F.pad(g, [p for p in reversed(padding) for _ in range(2)])
    return _correlation(module, small=x, large=g, leading=x.shape[1])


def _padding(module: nn.Module) -> list[int]:
    """Padding as ``F.pad`` wants it: last dimension first, before and after."""
    kernel, dilation, padding = module.kernel_size, module.dilation, module.padding
    if padding == "valid":
        pairs = [(0, 0)] * len(kernel)  # type: ignore[arg-type]
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]  # type: ignore[arg-type]
        pairs = [(t // 2, t - t // 2) for t in total]
    else:
        pairs = [(int(p), int(p)) for p in padding]  # type: ignore[union-attr]
    return [p for pair in reversed(pairs) for p in pair]


def _correlation(module: nn.Module, small: Tensor, large: Tensor, leading: int) -> Factors:
    """``dW[o, c, k] = sum_l small[o, l] large[c, stride l + dilation k]``, within groups."""
    groups: int = module.groups  # type: ignore[assignment]
    kernel: tuple[int, ...] = module.kernel_size  # type: ignore[assignment]
    n, out, size = len(small), leading // groups, small.shape[2:]
    inner = large.shape[1] // groups
    steps = (module.stride, module.dilation)
    # Channels last copies longer runs of memory, unless there are only a few channels.
    channels_last = groups == 1 and inner >= 8
    if channels_last:
        images = large.movedim(1, -1).contiguous()
        windows = _windows(images, kernel, steps, size, first=1)
        right = windows.reshape(n, size.numel(), -1)

        def restore(t: Tensor) -> Tensor:
            return t.unflatten(-1, (*kernel, inner)).movedim(-1, -1 - len(kernel))

        return Factors(small.reshape(n, out, -1), right, restore)
    windows = _windows(large.contiguous(), kernel, steps, size, first=2)
    if groups == 1:
        right = windows.reshape(n, -1, size.numel()).transpose(1, 2)
        left = small.reshape(n, out, -1)
        return Factors(left, right, lambda t: t.unflatten(-1, (inner, *kernel)))
    right = windows.reshape(n, groups, -1, size.numel()).transpose(2, 3)
    left = small.reshape(n, groups, out, -1)
    tail = len(kernel) + 1

    def merge(t: Tensor) -> Tensor:
        return t.unflatten(-1, (inner, *kernel)).flatten(-2 - tail, -1 - tail)

    return Factors(left, right, merge)


def _windows(
    images: Tensor, kernel: tuple[int, ...], steps: tuple, size: torch.Size, first: int
) -> Tensor:
    """A strided view of all patches, without a copy.

    Channels last (``first == 1``): ``(n, *size, *kernel, C)``; else ``(n, C, *kernel, *size)``.
    """
    stride, dilation = steps
    strides = images.stride()
    space = strides[first : first + len(kernel)]
    taps = [s * d for s, d in zip(space, dilation, strict=True)]
    moves = [s * m for s, m in zip(space, stride, strict=True)]
    if first == 1:
        shape = (len(images), *size, *kernel, images.shape[-1])
        return images.as_strided(shape, (strides[0], *moves, *taps, strides[-1]))
    shape = (len(images), images.shape[1], *kernel, *size)
    return images.as_strided(shape, (strides[0], strides[1], *taps, *moves))


def linear_bias(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Sum over positions of the output gradient, ``(n, O)``."""
    return g.reshape(len(g), -1, g.shape[-1]).sum(1)


def channel_bias(module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Sum over space of the output gradient, ``(n, C)``."""
    return g.reshape(len(g), g.shape[1], -1).sum(2)


def batch_norm(module: nn.BatchNorm2d, x: Tensor, g: Tensor) -> Tensor:
    """Scale of a BatchNorm that uses its running statistics."""
    if module.running_mean is None:
        raise ValueError("BatchNorm without running statistics mixes samples.")
    mean, var = module.running_mean, module.running_var
    normed = F.batch_norm(x, mean, var, None, None, False, 0.0, module.eps)
    return channel_bias(module, x, g * normed)


def group_norm(module: nn.GroupNorm, x: Tensor, g: Tensor) -> Tensor:
    """Scale of a GroupNorm."""
    return channel_bias(module, x, g * F.group_norm(x, module.num_groups, eps=module.eps))


def layer_norm(module: nn.LayerNorm, x: Tensor, g: Tensor) -> Tensor:
    """Scale of a LayerNorm over the last dimensions."""
    shape = module.normalized_shape
    product = g * F.layer_norm(x, shape, eps=module.eps)
    return product.reshape(len(g), -1, *shape).sum(1)


def layer_norm_bias(module: nn.LayerNorm, x: Tensor, g: Tensor) -> Tensor:
    """Shift of a LayerNorm over the last dimensions."""
    return g.reshape(len(g), -1, *module.normalized_shape).sum(1)


def embedding(module: nn.Embedding, x: Tensor, g: Tensor) -> Tensor:
    """Table of an Embedding: rows of the output gradient added up by index."""
    n, rows = len(x), len(module.weight)
    index, g = _indices(module, x, g)
    table = g.new_zeros(n * rows, g.shape[-1])
    return table.index_add_(0, index, g).view(n, *module.weight.shape)


def embedding_square_sum(module: nn.Embedding, x: Tensor, g: Tensor) -> Tensor:
    """Sum over samples of squares, without a table per sample."""
    index, g = _indices(module, x, g)
    used, place = index.unique(return_inverse=True)
    sums = g.new_zeros(len(used), g.shape[-1]).index_add_(0, place, g).square_()
    return torch.zeros_like(module.weight, dtype=g.dtype).index_add_(
        0, used % len(module.weight), sums
    )


def _indices(module: nn.Embedding, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each position in one long table of all samples' rows, padding left out."""
    n, rows = len(x), len(module.weight)
    flat = x.reshape(n, -1)
    index = (flat + rows * torch.arange(n, device=x.device).unsqueeze(1)).reshape(-1)
    g = g.reshape(-1, g.shape[-1])
    if module.padding_idx is not None:
        kept = flat.reshape(-1) != module.padding_idx
        index, g = index[kept], g[kept]
    return index, g


#: Weights whose per-sample gradients are outer products, by layer type.
FACTORS: dict[type[nn.Module], Callable[..., Factors]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution,
}

#: Per-sample gradients that are computed as they stand, by layer type and parameter.
DIRECT: dict[type[nn.Module], dict[str, Callable[..., Tensor]]] = {
    nn.Linear: {"bias": linear_bias},
    nn.BatchNorm1d: {"weight": batch_norm, "bias": channel_bias},
    nn.BatchNorm2d: {"weight": batch_norm, "bias": channel_bias},
    nn.BatchNorm3d: {"weight": batch_norm, "bias": channel_bias},
    nn.GroupNorm: {"weight": group_norm, "bias": channel_bias},
    nn.LayerNorm: {"weight": layer_norm, "bias": layer_norm_bias},
    nn.Embedding: {"weight": embedding},
}
DIRECT.update({kind: {"bias": channel_bias} for kind in FACTORS if kind is not nn.Linear})


def closed_form(module: nn.Module, name: str) -> bool:
    """Tell whether a layer's own parameter of that name has a closed form here."""
    if getattr(module, "scale_grad_by_freq", False):
        return False
    return factors(module, name) is not None or direct(module, name) is not None


def plain(module: nn.Module) -> bool:
    """Tell whether a layer's forward pass is that of the torch layer it descends from."""
    kinds: tuple[type[nn.Module], ...] = (*FACTORS, *DIRECT, *RECURRENT)
    return any(type(module).forward is kind.forward for kind in kinds)


def factors(module: nn.Module, name: str) -> Callable[..., Factors] | None:
    """Give the factors of a layer's parameter, or None."""
    if unrolled(module) and name.startswith("weight_"):
        return linear
    return _find(FACTORS, module) if name == "weight" else None


def direct(module: nn.Module, name: str) -> Callable[..., Tensor] | None:
    """Give the direct rule of a layer's parameter, or None."""
    if unrolled(module) and name.startswith("bias_"):
        return linear_bias
    return (_find(DIRECT, module) or {}).get(name)


def _find(table: dict[type[nn.Module], Any], module: nn.Module) -> Any:
    for kind in type(module).__mro__:
        if kind in table:
            return table[kind]
    return None
