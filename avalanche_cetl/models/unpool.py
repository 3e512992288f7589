"""Unpooling: maps in a larger size, alone and fused with the convolution that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Unpool(nn.Module):
    """Undo a pooling: spread a small map ``(N, C, *small)`` over a larger one.

    Pooling switches do not exist for a code that comes from another network, so positions
    are fixed: ``"nearest"`` repeats each value over its cell, ``"zeros"`` (bed of nails)
    puts it in the cell's first pixel and zeros elsewhere.

    :param size: spatial size of the output, one or two numbers.
    :param mode: ``"nearest"`` or ``"zeros"``.
    """

    nails: Tensor | None

    def __init__(self, size: Sequence[int], mode: str = "nearest"):
        super().__init__()
        if mode not in ("nearest", "zeros"):
            raise ValueError(f"unpool={mode!r} is not known. Allowed: 'nearest', 'zeros'.")
        self.size = tuple(size)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Give maps of the wanted size."""
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
        """Describe the layer in ``print(model)``."""
        return f"size={self.size}, mode={self.mode!r}"


def _nearest(x: Tensor, size: tuple[int, ...]) -> Tensor:
    even = all(large % small == 0 for small, large in zip(x.shape[2:], size, strict=True))
    if x.device.type == "cpu" and len(size) == 2 and even:
        return _Repeat.apply(x, size)
    return F.interpolate(x, size=size, mode="nearest")


class _Repeat(torch.autograd.Function):
    """Nearest-neighbour upsampling to whole multiples, without the CPU kernel's detours.

    The same values and gradients to the bit; forward, the kernel goes through another memory
    format, at three times the cost.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: tuple[int, int]) -> Tensor:
        """Repeat every value over its cell."""
        rows, channels, height, width = x.shape
        cells = x[:, :, :, None, :, None]
        cells = cells.expand(-1, -1, -1, size[0] // height, -1, size[1] // width)
        return cells.reshape(rows, channels, *size)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Keep the shapes."""
        ctx.shape, ctx.size = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum over every cell."""
        sums = torch.ops.aten.upsample_nearest2d_backward(gradient, ctx.size, ctx.shape)
        return sums, None


def _fusible(unpool: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    """Whether the two are a doubling of both sides and a plain 3x3 convolution, unobserved."""
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
        and not nn.modules.module._has_any_global_hook()
    )


def _observed(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def _unpool_and_convolve(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """Run unpooling and convolution in one, on the small map.

    Of the nine pixels that a kernel sees after the unpooling, at most four differ: four 2x2
    kernels, whose weights are sums of the 3x3 kernel's, give the four pixels of every cell.
    The same value up to rounding, at half the products, and no large map in between.
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
    """From three taps to two, for the first and the second pixel of a cell; a new first axis."""
    before, here, after = kernel.unbind(axis)
    first = torch.stack([before, here + after], axis)
    return torch.stack([first, torch.stack([before + here, after], axis)])


class Fit(nn.Module):
    """Crop or zero-pad the far edges of maps to an exact spatial size."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """Give maps ``(N, C, *size)``."""
        for axis, large in enumerate(self.size, start=2):
            x = x.narrow(axis, 0, min(large, x.shape[axis]))
        missing = [large - small for large, small in zip(self.size, x.shape[2:], strict=True)]
        if any(missing):
            x = F.pad(x, [side for gap in reversed(missing) for side in (0, gap)])
        return x

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        return f"size={self.size}"
