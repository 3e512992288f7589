"""Per-sample gradients of a module or of the whole model by torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from avalanche_cetl.common.tensors import map_tensors
from avalanche_cetl.information.likelihood import BoundLoss


def current_autocast(device: torch.device) -> Callable[[], torch.autocast]:
    """Return a function that makes contexts with the autocast state of now."""
    kind = device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled)


def model_gradients(
    model: nn.Module,
    inputs: Sequence[Tensor],
    loss: BoundLoss,
    targets: Any,
    params: Mapping[str, Tensor],
    pairs: bool = False,
) -> dict[str, Tensor]:
    """Compute per-sample gradients of a loss of the whole model, each ``(n, *param.shape)``.

    Every sample runs as a batch of one, or of two that are the same.

    :param model: that is run.
    :param inputs: tensors ``(n, ...)``.
    :param loss: of the outputs.
    :param targets: of the n samples, or None.
    :param params: to differentiate by, by name.
    :param pairs: run pairs, for a model that loses the batch axis of a single sample.
    :raises RuntimeError: where torch.func cannot run the model.
    """
    chosen, fixed = _split(model, params)
    rows = 2 if pairs else 1

    def batch_of(sample: Tensor) -> Tensor:
        # Memory of its own: the model may write into it.
        return sample.unsqueeze(0).expand(rows, *sample.shape).clone()

    def sample_loss(weights: dict[str, Tensor], sample: Any, target: Any) -> Tensor:
        batch = tuple(batch_of(part) for part in sample)
        outputs = functional_call(model, fixed | weights, batch)
        return loss(outputs, map_tensors(target, batch_of))[0]

    def one(sample: Any, target: Any) -> dict[str, Tensor]:
        return grad(sample_loss)(chosen, sample, target)

    return _vectorised(one, (tuple(inputs), targets))


def call_gradients(
    module: nn.Module,
    args: tuple[Any, ...],
    named: dict[str, Any],
    gradient: Tensor,
    params: Mapping[str, Tensor],
    rowwise: Sequence[bool],
) -> dict[str, Tensor]:
    """Compute per-sample gradients of one call of a module, given the gradient of its output.

    :param module: that was called.
    :param args: its positional inputs.
    :param named: its inputs by keyword.
    :param gradient: of its output, ``(n, ...)``.
    :param params: to differentiate by, by their names in the module.
    :param rowwise: which of the inputs (positional, then named) have a row for each sample;
        the others are the same for all.
    :raises RuntimeError: where torch.func cannot run the module.
    """
    chosen, fixed = _split(module, params)
    order = list(named)
    everything = [*args, *named.values()]
    own = [i for i, flag in enumerate(rowwise) if flag]

    def one(samples: tuple[Tensor, ...], g: Tensor) -> dict[str, Tensor]:
        given = list(everything)
        for i, sample in zip(own, samples, strict=True):
            given[i] = sample.unsqueeze(0).clone()  # the module may write into it

        def output(weights: dict[str, Tensor]) -> Tensor:
            keywords = dict(zip(order, given[len(args) :], strict=True))
            out = functional_call(module, fixed | weights, tuple(given[: len(args)]), keywords)
            return out if isinstance(out, Tensor) else out[0]

        return vjp(output, chosen)[1](g.unsqueeze(0))[0]

    samples = tuple(everything[i].detach() for i in own)
    return _vectorised(one, (samples, gradient))


def _split(
    module: nn.Module, params: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    chosen = {name: p.detach() for name, p in params.items()}
    fixed = {n: t.detach() for n, t in module.named_parameters() if n not in chosen}
    return chosen, fixed | dict(module.named_buffers())


def _vectorised(one: Callable[..., dict[str, Tensor]], batch: tuple[Any, Any]) -> dict[str, Tensor]:
    in_dims = tuple(None if part is None else 0 for part in batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop")
        found = vmap(one, in_dims=in_dims, randomness="error")(*batch)
    return {name: _own(values) for name, values in found.items()}


def _own(values: Tensor) -> Tensor:
    """Return values with memory for each sample: vmap repeats equal ones by a stride of 0."""
    return values.clone(memory_format=torch.contiguous_format) if 0 in values.stride() else values
