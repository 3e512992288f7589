"""The shared decoder T1: the target network with its layers reversed (section 4.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from avalanche_cetl.common.layout import POOLINGS, own_axis
from avalanche_cetl.information.fisher import evaluation_mode
from avalanche_cetl.models.targets import Target, as_target, init_he

_TRANSPOSED = {nn.Conv1d: nn.ConvTranspose1d, nn.Conv2d: nn.ConvTranspose2d}


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


class ReversedDecoder(nn.Module):
    """T1: reads a code of the target's width, writes an image of exactly the input's shape.

    A target whose layers follow one another is traced and reversed layer by layer: linear
    to linear, convolution to transposed convolution (each with the number of kernels of its
    counterpart), pooling to unpooling, flatten to unflatten, rectifiers between. A pooling
    down to one pixel has kept no position, so its reverse is a linear layer. A target with
    branches (ResNet, timm models) gets a decoder laid out from the shapes of its feature
    maps instead: a linear layer to the smallest map, then unpooling and a 3x3 transposed
    convolution per resolution. Normalisation and dropout have no reverse. The output is
    linear (no squashing); weights start as He et al. 2015, the last layer at a tenth of it.

    :param target: the target network T2; any module that :func:`as_target` takes.
    :param input_shape: shape of one input, ``(C, H, W)`` (or ``(D,)`` for vectors).
    :param unpool: ``"nearest"`` or ``"zeros"``, see :class:`Unpool`.
    :ivar code_dim: width of the code it reads.
    :ivar mirrored: True when the target was reversed layer by layer.
    :raises ValueError: when the target does not take ``input_shape``.
    """

    def __init__(
        self,
        target: Target | nn.Module | str,
        input_shape: Sequence[int],
        unpool: str = "nearest",
    ):
        super().__init__()
        target = as_target(target)
        self.input_shape = tuple(int(size) for size in input_shape)
        self.code_dim, _ = target.measure(self.input_shape)
        with evaluation_mode(target), torch.no_grad():
            chain = trace_chain(target, self.input_shape)
            if chain is not None:
                layers = _reverse_chain(chain, self.input_shape, unpool)
            else:
                layers = _from_shapes(target, self.code_dim, self.input_shape, unpool)
        self.mirrored = chain is not None
        self.layers = nn.Sequential(*layers)
        init_he(self.layers)
        last = [m for m in self.layers if isinstance(m, nn.Linear) or hasattr(m, "output_padding")]
        with torch.no_grad():
            # A first reconstruction near zero: otherwise the first steps only shrink it.
            last[-1].get_parameter("weight").mul_(0.1)

    def forward(self, code: Tensor) -> Tensor:
        """Give reconstructions ``(N, *input_shape)`` of codes ``(N, code_dim)``."""
        return self.forward_hidden(code)[0]

    def forward_hidden(self, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give reconstructions, and the hidden layers' outputs (after each rectifier)."""
        if code.dim() != 2 or code.shape[1] != self.code_dim:
            raise ValueError(f"expected codes (N, {self.code_dim}), got {tuple(code.shape)}.")
        hidden = []
        x = code
        layers = list(self.layers)
        while layers:
            layer = layers.pop(0)
            if layers and isinstance(layer, Unpool) and _fusible(layer, layers[0], x):
                x = _unpool_and_convolve(x, layers.pop(0))  # type: ignore[arg-type]
                continue
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                hidden.append(x)
        return x, hidden


# One traced layer: the module, and the shapes (without batch) of what it reads and writes.
_Step = tuple[nn.Module | None, tuple[int, ...], tuple[int, ...]]


def trace_chain(target: Target, input_shape: Sequence[int]) -> list[_Step] | None:
    """Trace the target from input to code, if its layers follow one another.

    :return: the layers in order, or None when it branches, cannot be traced, or has a layer
        that has no reverse here.
    """
    try:
        graph = fx.symbolic_trace(target.module)
        example = torch.zeros(1, *input_shape).to(next(target.parameters()))
        ShapeProp(graph).propagate(example)
    except Exception:  # whatever a foreign forward() raises under symbolic tracing
        return None
    modules = dict(graph.named_modules())
    steps: list[_Step] = []
    previous = next(iter(graph.graph.nodes))
    classifier = target._classifier() if target.code is None else None
    for node in list(graph.graph.nodes)[1:]:
        if node.op == "output":
            return None  # the code was never met
        if node.all_input_nodes != [previous] or "tensor_meta" not in node.meta:
            return None
        module = modules.get(node.target) if node.op == "call_module" else None
        if classifier is not None and module is classifier:  # tracing copies no leaf module
            return steps
        read = tuple(previous.meta["tensor_meta"].shape[1:])
        written = tuple(node.meta["tensor_meta"].shape[1:])
        if not _reversible(module, read, written):
            return None
        steps.append((module, read, written))
        if target.code is not None and node.target == target.code:
            return steps
        previous = node
    return None


def _reversible(module: nn.Module | None, read: Sequence[int], written: Sequence[int]) -> bool:
    if isinstance(module, nn.Linear):
        return len(read) == 1
    if isinstance(module, (nn.Conv1d, nn.Conv2d, *POOLINGS)):
        return True
    if read == written:  # activations, normalisation, dropout: nothing to undo
        return True
    return len(written) == 1 and torch.Size(read).numel() == written[0]  # flatten


def _reverse_chain(chain: list[_Step], image: tuple[int, ...], unpool: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    code_shape = chain[-1][2] if chain else image
    if len(code_shape) > 1:
        layers.append(nn.Unflatten(1, code_shape))
    for module, read, written in reversed(chain):
        if isinstance(module, nn.Linear):
            layers += [nn.Linear(module.out_features, module.in_features), nn.ReLU()]
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            layers += [_transpose(module, read), Fit(read[1:]), nn.ReLU()]
        elif isinstance(module, POOLINGS):
            if all(size == 1 for size in written[1:]) and torch.Size(read[1:]).numel() > 4:
                numel = torch.Size(read).numel()
                layers += [nn.Flatten(), nn.Linear(written[0], numel), nn.ReLU()]
                layers.append(nn.Unflatten(1, read))
            else:
                layers.append(Unpool(read[1:], unpool))
        elif read != written:
            layers.append(nn.Unflatten(1, read))
    while layers and isinstance(layers[-1], nn.ReLU):
        layers.pop()
    if not any(isinstance(layer, nn.Linear) or hasattr(layer, "stride") for layer in layers):
        # A target without a hidden layer: its code is the input itself.
        numel = torch.Size(image).numel()
        layers = [nn.Linear(numel, numel), nn.Unflatten(1, image)]
    return layers


def _transpose(layer: nn.Conv1d | nn.Conv2d, read: tuple[int, ...]) -> nn.Module:
    """Reverse a convolution: output sizes that its stride had rounded away come back."""
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":
        padding = [span // 2 for span in spans]
    elif layer.padding == "valid":
        padding = [0 for _ in spans]
    else:
        padding = [int(pad) for pad in layer.padding]
    extra = [
        (size + 2 * pad - span - 1) % step
        for size, pad, span, step in zip(read[1:], padding, spans, layer.stride, strict=True)
    ]
    kind = nn.ConvTranspose2d if isinstance(layer, nn.Conv2d) else nn.ConvTranspose1d
    return kind(
        layer.out_channels,
        layer.in_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=tuple(padding),  # type: ignore[arg-type]
        output_padding=tuple(extra),  # type: ignore[arg-type]
        groups=layer.groups,
        dilation=layer.dilation,  # type: ignore[arg-type]
    )


def _from_shapes(
    target: Target, code_dim: int, image: tuple[int, ...], unpool: str
) -> list[nn.Module]:
    """Lay a decoder out from the target's feature maps, one step per resolution."""
    if len(image) != 3:
        numel = torch.Size(image).numel()
        hidden = max(code_dim, min(4 * code_dim, numel))
        layers = [nn.Linear(code_dim, hidden), nn.ReLU(), nn.Linear(hidden, numel)]
        return [*layers, nn.Unflatten(1, image)] if len(image) > 1 else layers
    maps = _feature_maps(target, image)
    channels, height, width = maps[-1]
    layers = [nn.Linear(code_dim, channels * height * width), nn.ReLU()]
    layers.append(nn.Unflatten(1, (channels, height, width)))
    for out_channels, height, width in reversed(maps[:-1]):
        layers.append(Unpool((height, width), unpool))
        layers += [nn.ConvTranspose2d(channels, out_channels, 3, padding=1), nn.ReLU()]
        channels = out_channels
    layers.append(nn.ConvTranspose2d(channels, image[0], 3, padding=1))
    return layers


def _distance(height: int, size: tuple[int, int]) -> int:
    return abs(size[0] - height)


def _feature_maps(target: Target, image: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Give the last map's shape at each resolution from the input's down to at least 4 pixels.

    Factors above 2 between resolutions (patch embeddings) are bridged by halving. Outputs with
    channels last (of linear layers and LayerNorms on maps, and of what follows them) do not count.
    """
    last: dict[tuple[int, int], int] = {}
    latest = 1

    def note(module: nn.Module, _args: object, output: object) -> None:
        nonlocal latest
        if not isinstance(output, Tensor) or output.dim() != 4:
            return
        latest = own_axis(module) or latest
        if latest == 1 and min(output.shape[2:]) >= 2:
            last[(output.shape[2], output.shape[3])] = output.shape[1]

    handles = [m.register_forward_hook(note) for m in target.modules() if not any(m.children())]
    try:
        target.encode(torch.zeros(2, *image).to(next(target.parameters())))
    finally:
        for handle in handles:
            handle.remove()
    _, height, width = image
    smallest = min(last, default=(max(1, height // 8), max(1, width // 8)))
    channels = last.get(smallest, 64)
    maps = []
    while (height, width) != smallest and min(height, width) > 1:
        # Channels of the map traced nearest to this size; at the image itself, the shallowest.
        near = min(last, key=partial(_distance, height), default=smallest)
        maps.append(
            (last.get((height, width), max(16, last.get(near, channels) // 2)), height, width)
        )
        height = max(smallest[0], -(-height // 2))
        width = max(smallest[1], -(-width // 2))
    return [*maps, (channels, *smallest)]
