"""Grad samplers of torch's own layers: per-sample gradients from input and output gradient.

A weight's per-sample gradient is mostly a sum of outer products over positions (tokens,
pixels), and is returned as its two :class:`~avalanche_cetl.information.gradients.registry.Factors`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.information.gradients.grad_samplers_rnn import RECURRENT, can_be_unrolled
from avalanche_cetl.information.gradients.registry import (
    Factors,
    GradSampler,
    register_layer_factors,
    register_layer_gradients,
    registered_for,
)

Inputs = tuple[Any, ...]

#: Input channels from which on windows are copied with channels last: a window is then made of runs
#: of at least as many values. Measured on whole calls, one core: with fewer channels it costs 8 %
#: (CICNN, whose images have 3) to 18 % (4 throughout); from 8 on the two are within 10 %.
_MANY_CHANNELS = 8


@register_layer_factors(nn.Linear, parameter="weight")
def linear(module: nn.Linear, inputs: Inputs, g: Tensor) -> Factors:
    """Return the factors of ``nn.Linear``, on ``(n, I)`` or on any positions ``(n, ..., I)``."""
    x = inputs[0]
    left = g.reshape(len(g), -1, g.shape[-1]).transpose(1, 2)
    return Factors(left, x.reshape(len(x), -1, x.shape[-1]), lambda t: t)


@register_layer_factors(nn.Conv1d, nn.Conv2d, nn.Conv3d, parameter="weight")
def convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Inputs, g: Tensor) -> Factors:
    """Return the factors of a convolution, with any stride, padding, dilation and groups."""
    return _correlation(module, small=g, large=_padded(module, inputs[0]), leading=g.shape[1])


def is_depthwise(module: nn.Module) -> bool:
    """Return whether a layer is a convolution of every channel by itself."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and (
        1 < module.groups == module.in_channels == module.out_channels
    )


def depthwise_product(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Inputs, g: Tensor
) -> Tensor:
    """Return the weight's gradients of a depthwise convolution, ``(n, C, 1, kernel)``.

    One tap of the kernel after another, with channels last: a matrix of windows would be as large
    as the image times the kernel's size, for a product with a single row.
    """
    kernel = [range(k) for k in module.kernel_size]
    image = _padded(module, inputs[0]).movedim(1, -1).contiguous()
    small = g.movedim(1, -1).contiguous()
    space = tuple(range(1, small.dim() - 1))
    taps = []
    for place in product(*kernel):
        moves = zip(place, module.dilation, module.stride, small.shape[1:-1], strict=True)
        window = [slice(k * d, k * d + s * (size - 1) + 1, s) for k, d, s, size in moves]
        taps.append((image[(slice(None), *window)] * small).sum(space))
    return torch.stack(taps, -1).unsqueeze(2)


def _padded(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Return the input of a convolution as its kernel reads it."""
    before_after = _padding(module)
    if not any(before_after):
        return x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, before_after, mode=mode)


@register_layer_factors(
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, parameter="weight"
)
def transposed_convolution(
    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, inputs: Inputs, g: Tensor
) -> Factors:
    """Return the factors of a transposed convolution: input and output gradient trade places."""
    x, padding = inputs[0], [int(p) for p in module.padding]
    g = F.pad(g, [p for p in reversed(padding) for _ in range(2)])
    return _correlation(module, small=x, large=g, leading=x.shape[1])


def _padding(module: nn.Module) -> list[int]:
    """Return padding as ``F.pad`` reads it: last dimension first, before and after."""
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
    """Return the factors of a convolution's weight gradient, which is a correlation.

    ``dW[o, c, k] = sum_l small[o, l] large[c, stride l + dilation k]``, within groups: for a
    convolution ``small`` is the output gradient and ``large`` the padded input, for a transposed
    one they trade places. With the window of ``large`` under each position l laid out as a row
    (im2col), the sum over l is a product of two matrices per sample. The windows are a strided
    view of the image; copying it into rows is the one copy that is made, and it is as large as the
    image times the kernel's size. That is where it would break for large images: the copy is made
    for as many samples at a time as a block holds, at least one.
    """
    groups: int = module.groups  # type: ignore[assignment]
    kernel: tuple[int, ...] = module.kernel_size  # type: ignore[assignment]
    n, out, size = len(small), leading // groups, small.shape[2:]
    inner = large.shape[1] // groups
    steps = (module.stride, module.dilation)
    channels_last = groups == 1 and inner >= _MANY_CHANNELS
    if channels_last:
        images = large.movedim(1, -1).contiguous()
        windows = _windows(images, kernel, steps, size, first=1)
        right = windows.reshape(n, size.numel(), -1)

        def restore(t: Tensor) -> Tensor:
            by_window: Tensor = t.unflatten(-1, (*kernel, inner))
            return by_window.movedim(-1, -1 - len(kernel))

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
        by_window: Tensor = t.unflatten(-1, (inner, *kernel))
        return by_window.flatten(-2 - tail, -1 - tail)

    return Factors(left, right, merge)


def _windows(
    images: Tensor, kernel: tuple[int, ...], steps: tuple[Any, ...], size: torch.Size, first: int
) -> Tensor:
    """Return a strided view of all windows, without a copy.

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


@register_layer_gradients(nn.Linear, parameter="bias")
def linear_bias(module: nn.Module, inputs: Inputs, g: Tensor) -> Tensor:
    """Return the sum over positions of the output gradient, ``(n, O)``."""
    return g.reshape(len(g), -1, g.shape[-1]).sum(1)


@register_layer_gradients(
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm,
    parameter="bias",
)  # fmt: skip
def channel_bias(module: nn.Module, inputs: Inputs, g: Tensor) -> Tensor:
    """Return the sum over space of the output gradient, ``(n, C)``."""
    return g.reshape(len(g), g.shape[1], -1).sum(2)


@register_layer_gradients(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, parameter="weight")
def batch_norm(module: nn.BatchNorm2d, inputs: Inputs, g: Tensor) -> Tensor:
    """Return the gradient of the scale of a BatchNorm that uses its running statistics."""
    if module.running_mean is None:
        raise ValueError("BatchNorm without running statistics mixes samples.")
    mean, var = module.running_mean, module.running_var
    normed = F.batch_norm(inputs[0], mean, var, None, None, False, 0.0, module.eps)
    return channel_bias(module, inputs, g * normed)


@register_layer_gradients(nn.GroupNorm, parameter="weight")
def group_norm(module: nn.GroupNorm, inputs: Inputs, g: Tensor) -> Tensor:
    """Return the gradient of the scale of a GroupNorm."""
    normed = F.group_norm(inputs[0], module.num_groups, eps=module.eps)
    return channel_bias(module, inputs, g * normed)


@register_layer_gradients(nn.LayerNorm, parameter="weight")
def layer_norm(module: nn.LayerNorm, inputs: Inputs, g: Tensor) -> Tensor:
    """Return the gradient of the scale of a LayerNorm over the last dimensions."""
    shape = module.normalized_shape
    product = g * F.layer_norm(inputs[0], shape, eps=module.eps)
    return product.reshape(len(g), -1, *shape).sum(1)


@register_layer_gradients(nn.LayerNorm, parameter="bias")
def layer_norm_bias(module: nn.LayerNorm, inputs: Inputs, g: Tensor) -> Tensor:
    """Return the gradient of the shift of a LayerNorm over the last dimensions."""
    return g.reshape(len(g), -1, *module.normalized_shape).sum(1)


@register_layer_gradients(nn.Embedding, parameter="weight")
def embedding(module: nn.Embedding, inputs: Inputs, g: Tensor) -> Tensor:
    """Return the gradient of an Embedding's table: output gradients added up by index."""
    x = inputs[0]
    n, rows = len(x), len(module.weight)
    index, g = _indices(module, x, g)
    table = g.new_zeros(n * rows, g.shape[-1])
    return table.index_add_(0, index, g).view(n, *module.weight.shape)


def embedding_square_sum(module: nn.Embedding, x: Tensor, g: Tensor) -> Tensor:
    """Return the sum over samples of squares, without a table per sample."""
    index, g = _indices(module, x, g)
    used, place = index.unique(return_inverse=True)
    sums = g.new_zeros(len(used), g.shape[-1]).index_add_(0, place, g).square_()
    return torch.zeros_like(module.weight, dtype=g.dtype).index_add_(
        0, used % len(module.weight), sums
    )


def _indices(module: nn.Embedding, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return each position's index in one long table of all samples' rows, padding left out."""
    n, rows = len(x), len(module.weight)
    flat = x.reshape(n, -1)
    index = (flat + rows * torch.arange(n, device=x.device).unsqueeze(1)).reshape(-1)
    g = g.reshape(-1, g.shape[-1])
    if module.padding_idx is not None:
        kept = flat.reshape(-1) != module.padding_idx
        index, g = index[kept], g[kept]
    return index, g


def grad_sampler_of(module: nn.Module, name: str) -> GradSampler | None:
    """Return the grad sampler of a layer's own parameter of that name; None where it has none.

    The weights of a recurrent layer have that of a linear layer which reads its steps; see
    :mod:`~avalanche_cetl.information.gradients.grad_samplers_rnn`.
    """
    sampler = registered_for(type(module), name)
    if sampler is not None:
        # Rows are divided by how often they were read in the whole batch.
        by_frequency = sampler.function is embedding and module.scale_grad_by_freq
        return None if by_frequency else sampler
    if can_be_unrolled(module):
        layer_type = next(kind for kind in RECURRENT if isinstance(module, kind))
        if name.startswith("weight_"):
            return GradSampler(layer_type, linear, factored=True, by_step=True)
        if name.startswith("bias_"):
            return GradSampler(layer_type, linear_bias, factored=False, by_step=True)
    return None


def is_torchs_own(module: nn.Module, name: str) -> bool:
    """Return whether the grad sampler is ours, and the forward pass torch's that it was made for.

    Where no gradient reaches such a layer, it is taken without having been seen at work.
    """
    sampler = grad_sampler_of(module, name)
    return (
        sampler is not None
        and sampler.builtin
        and type(module).forward is sampler.layer_type.forward
    )
