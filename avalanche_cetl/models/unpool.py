"""Unpooling: maps in a larger size, alone and fused with the convolution that follows.

The fused form (:func:`unpool_and_convolve`) computes what :class:`Unpool` to twice the height and
width, followed by a transposed 3x3 convolution of stride 1 and padding 1, computes. After the
unpooling every value stands in a cell of 2x2 equal pixels. Along one axis, the three taps of a
kernel therefore read only two different values: from the first pixel of a cell, the value of the
cell before and twice that of its own; from the second pixel, twice that of its own cell and the
value of the cell after::

    first pixel:   k0 a + k1 b + k2 b = k0 a + (k1 + k2) b      a: the cell before, b: this cell
    second pixel:  k0 b + k1 b + k2 c = (k0 + k1) b + k2 c      c: the cell after

So each of the four pixels of a cell is a 2x2 convolution of the small map, with sums of the 3x3
kernel's weights as its kernel. All four are computed by one ordinary convolution with four times
the output channels, and their results are interleaved. Why: for each pair of channels that takes
4 x 4 products a cell where the two layers take 4 x 9, and the map in front of the convolution
stays at a quarter of the size. Zeros outside the map count as further cells on either side, which
is what padding means to the two layers as well. (k is the kernel of an ordinary convolution, that
is, the transposed one's turned round.)

Where it would break: with other factors than 2, other kernels than 3x3, strides, dilations or
paddings the cells and taps no longer match, with ``"zeros"`` the pixels of a cell are not equal,
and with groups the channels would have to be sorted again. A hook on either layer expects the
map in between, which does not exist here. :func:`fusible` refuses all of these. Sums of weights
are rounded, so values agree up to rounding only; gradients flow through the sums to the 3x3
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.common.validation import check_choice

#: How a value of a small map is spread over its cell of a larger one.
Upsampling = Literal["nearest", "zeros"]


class Unpool(nn.Module):
    """The reverse of a pooling: spreads a small map ``(N, C, *small)`` over a larger one.

    Max pooling could store which pixel of a cell was largest (its switches), but a code that
    comes from another network has none. So positions are fixed: ``"nearest"`` repeats each value
    over its cell, ``"zeros"`` (bed of nails) puts it into the cell's first pixel and zeros
    elsewhere.

    :param size: spatial size of the output, one or two numbers.
    :param mode: ``"nearest"`` or ``"zeros"``.
    """

    nails: Tensor | None

    def __init__(self, size: Sequence[int], mode: Upsampling = "nearest"):
        super().__init__()
        check_choice("unpool", mode, get_args(Upsampling))
        self.size = tuple(size)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(N, C, *size)``."""
        spread = _nearest(x, self.size)
        if self.mode == "nearest":
            return spread
        for axis, (small, large) in enumerate(zip(x.shape[2:], self.size, strict=True)):
            cell = torch.arange(large, device=x.device) * small // large
            first = torch.ones_like(cell, dtype=torch.bool)
            first[1:] = cell[1:] != cell[:-1]
            shape = [1] * spread.dim()
            shape[axis + 2] = large
            spread = spread * first.view(shape).to(spread.dtype)
        return spread

    def extra_repr(self) -> str:
        """Return size and mode, for ``print(model)``."""
        return f"size={self.size}, mode={self.mode!r}"


def _nearest(x: Tensor, size: tuple[int, ...]) -> Tensor:
    even = all(large % small == 0 for small, large in zip(x.shape[2:], size, strict=True))
    if x.device.type == "cpu" and len(size) == 2 and even:
        result: Tensor = _Repeat.apply(x, size)
        return result
    return F.interpolate(x, size=size, mode="nearest")


class _Repeat(torch.autograd.Function):
    """Nearest-neighbour upsampling to whole multiples, without the CPU kernel's detours.

    The same values and gradients to the bit; forward, the kernel goes through another memory
    format, at three times the cost.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps in which every value is repeated over its cell."""
        rows, channels, height, width = x.shape
        cells = x[:, :, :, None, :, None]
        cells = cells.expand(-1, -1, -1, size[0] // height, -1, size[1] // width)
        return cells.reshape(rows, channels, *size)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keep the shapes for the backward pass."""
        ctx.shape, ctx.size = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient's sum over every cell."""
        sums = torch.ops.aten.upsample_nearest2d_backward(gradient, ctx.size, ctx.shape)
        return sums, None


def fusible(unpool: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    """Whether :func:`unpool_and_convolve` may stand for two layers that follow one another.

    They have to be a doubling of both sides and a plain 3x3 convolution, without hooks.

    :param unpool: the first layer.
    :param layer: the second.
    :param x: what the first layer reads, ``(N, C, H, W)``.
    """
    return (
        isinstance(unpool, Unpool)
        and unpool.mode == "nearest"
        and isinstance(layer, nn.ConvTranspose2d)
        and tuple(unpool.size) == (2 * x.shape[2], 2 * x.shape[3])
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.output_padding == (0, 0)
        and layer.groups == 1
        and not any(_observed(module) for module in (unpool, layer))
        and not _observed(nn.modules.module, "_global")
    )


def _observed(module: nn.Module | ModuleType, prefix: str = "") -> bool:
    """Whether hooks are registered on the module, or (of torch's own file) on all modules."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"{prefix}_{kind}") for kind in kinds)


def unpool_and_convolve(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """Compute a convolution of the unpooled map from the small map; see the top of this file.

    :param x: ``(N, C, H, W)``.
    :param layer: a convolution that :func:`fusible` accepts.
    :return: ``(N, layer.out_channels, 2 H, 2 W)``.
    """
    count, _, height, width = x.shape
    kernel = layer.weight.flip(2, 3).transpose(0, 1)
    kernels = _half_kernels(_half_kernels(kernel, 2), 4)
    bias = layer.bias if layer.bias is None else layer.bias.repeat(4)
    cells = F.conv2d(x, kernels.flatten(0, 2), bias, padding=1)
    cells = cells.view(count, 2, 2, layer.out_channels, height + 1, width + 1)
    rows = []
    for down in (0, 1):
        pixels = [
            cells[:, right, down, :, down : down + height, right : right + width]
            for right in (0, 1)
        ]
        rows.append(torch.stack(pixels, -1))
    return torch.stack(rows, -3).reshape(count, layer.out_channels, 2 * height, 2 * width)


def _half_kernels(kernel: Tensor, axis: int) -> Tensor:
    """Sum three taps to two, for the first and the second pixel of a cell; a new first axis."""
    before, here, after = kernel.unbind(axis)
    first = torch.stack([before, here + after], axis)
    return torch.stack([first, torch.stack([before + here, after], axis)])


class Fit(nn.Module):
    """A layer that crops or zero-pads the far edges of maps to an exact spatial size."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(N, C, *size)``."""
        for axis, large in enumerate(self.size, start=2):
            x = x.narrow(axis, 0, min(large, x.shape[axis]))
        missing = [large - small for large, small in zip(self.size, x.shape[2:], strict=True)]
        if any(missing):
            x = F.pad(x, [side for gap in reversed(missing) for side in (0, gap)])
        return x

    def extra_repr(self) -> str:
        """Return the size, for ``print(model)``."""
        return f"size={self.size}"
