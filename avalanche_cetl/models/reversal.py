"""How a target network is reversed: its chain of layers, read by tracing or from shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from avalanche_cetl.common.channel_axis import POOLINGS, own_axis
from avalanche_cetl.common.hooks import watched
from avalanche_cetl.common.state import state_kept
from avalanche_cetl.models.targets import Target
from avalanche_cetl.models.unpool import Fit, Unpool, Upsampling

_TRANSPOSED = {nn.Conv1d: nn.ConvTranspose1d, nn.Conv2d: nn.ConvTranspose2d}


# One traced layer: the module, and the shapes (without batch) of what it reads and writes.
Step = tuple[nn.Module | None, tuple[int, ...], tuple[int, ...]]


def trace_chain(target: Target, input_shape: Sequence[int]) -> list[Step] | None:
    """Return the target's layers from input to code, if they follow one another.

    :return: the layers in order; None when the target branches, cannot be traced, or has a layer
        that has no reverse here.
    """
    try:
        with state_kept(target):  # a forward() may keep what tracing puts in the place of tensors
            graph = fx.symbolic_trace(target.module)
        example = torch.zeros(1, *input_shape).to(next(target.parameters()))
        ShapeProp(graph).propagate(example)
    except Exception:  # whatever a foreign forward() raises under symbolic tracing
        return None
    modules = dict(graph.named_modules())
    steps: list[Step] = []
    previous = next(iter(graph.graph.nodes))
    classifier = target.classifier() if target.code is None else None
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


def reverse_chain(chain: list[Step], image: tuple[int, ...], unpool: Upsampling) -> list[nn.Module]:
    """Return the layers of a decoder that undoes a chain of layers, from the last to the first.

    :param chain: of :func:`trace_chain`.
    :param image: shape of one input.
    :param unpool: ``"nearest"`` or ``"zeros"``.
    """
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
    """Return a convolution's reverse; it restores the sizes that the stride had rounded away."""
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


def from_shapes(
    target: Target, code_dim: int, image: tuple[int, ...], unpool: Upsampling
) -> list[nn.Module]:
    """Return the layers of a decoder laid out from a target's feature maps, a step per resolution.

    :param target: T2, whose feature maps are meant.
    :param code_dim: width of the code that the decoder reads.
    :param image: shape of one input.
    :param unpool: ``"nearest"`` or ``"zeros"``.
    """
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
    """Return the last map's shape at each resolution from the input's down to at least 4 pixels.

    Factors above 2 between resolutions (patch embeddings) are bridged by halving. Outputs with
    channels last (of linear layers and LayerNorms on maps, and of what follows them) do not count.
    """
    last: dict[tuple[int, int], int] = {}
    latest = 1

    def see(module: nn.Module, output: object) -> None:
        nonlocal latest
        if not isinstance(output, Tensor) or output.dim() != 4:
            return
        latest = own_axis(module) or latest
        if latest == 1 and min(output.shape[2:]) >= 2:
            last[(output.shape[2], output.shape[3])] = output.shape[1]

    with watched((m for m in target.modules() if not any(m.children())), see):
        target.encode(torch.zeros(2, *image).to(next(target.parameters())))
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
