"""Per-sample gradients by torch.func: ``vmap(grad)`` of one module, or of the whole model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from avalanche_cetl.common.tensors import map_tensors
from avalanche_cetl.information.gradients.capture import Call, RowMismatchError
from avalanche_cetl.information.gradients.grad_sample import KeptGradSample
from avalanche_cetl.information.gradients.loop import LoopGradSample
from avalanche_cetl.information.gradients.precision import current_autocast, magnitude
from avalanche_cetl.information.likelihood import BoundLoss, select

logger = logging.getLogger(__name__)

#: Memory that a module's pass keeps for its backward pass, over that of its inputs: 7 measured for
#: torch's attention, 10 for a whole encoder layer, 1 for a norm.
_KEPT_PER_INPUT = 8


class ModuleVmap(KeptGradSample):
    """Parameters below one module, by torch.func on that module alone.

    :param params: by name.
    :param module: that is run.
    :param local: their names in the module.
    :param calls: of the module.
    :param rowwise: for each call, which of its inputs have a row for each sample.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        module: nn.Module,
        local: list[str],
        calls: list[Call],
        rowwise: list[tuple[bool, ...]],
    ):
        super().__init__(params)
        self.module, self.local, self.calls, self.rowwise = module, local, calls, rowwise
        self._autocast = current_autocast(next(iter(params.values())).device)

    def reached(self, loss: int) -> bool:
        """Return whether the loss reaches it."""
        return any(call.gradients[loss] is not None for call in self.calls)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and what they take to make."""
        inputs = sum(
            v[0].numel() * v.element_size() * _KEPT_PER_INPUT
            for call in self.calls
            for v in call.values
            if isinstance(v, Tensor) and v.dim()
        )
        return super().row_bytes() + inputs

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        chosen = dict(zip(self.local, self.params.values(), strict=True))
        for call, rowwise in zip(self.calls, self.rowwise, strict=True):
            g = call.gradients[loss]
            if g is None:
                continue
            values = [v[rows] if own else v for v, own in zip(call.values, rowwise, strict=True)]
            args = tuple(values[: len(call.inputs)])
            named = dict(zip(call.named, values[len(args) :], strict=True))
            try:
                with self._autocast():
                    gradients = call_gradients(self.module, args, named, g[rows], chosen, rowwise)
            except (RuntimeError, NotImplementedError) as problem:
                raise RowMismatchError(f"torch.func cannot run a module: {problem}") from problem
            for name, local in zip(self.names, self.local, strict=True):
                total[name] = total[name] + gradients[local] if name in total else gradients[local]
        if not total:
            return {name: self._zeros(name, rows) for name in self.names}
        return {name: magnitude(value) for name, value in total.items()}


class ModelVmap(KeptGradSample):
    """Parameters by torch.func on the whole model; by the loop where that fails.

    :param params: by name.
    :param model: that is run.
    :param inputs: of the batch.
    :param by_loop: the same parameters' gradients by the loop.
    :param sample_bytes: memory that a pass of one sample takes.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        model: nn.Module,
        inputs: Sequence[Tensor],
        by_loop: LoopGradSample,
        sample_bytes: int,
    ):
        super().__init__(params)
        self.model, self.inputs, self._by_loop = model, inputs, by_loop
        self._sample_bytes = sample_bytes
        self._autocast = current_autocast(inputs[0].device)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and of its activations on the way."""
        return super().row_bytes() + self._sample_bytes

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        parts = [part[rows] for part in self.inputs]
        targets = select(self._by_loop.targets[loss], rows)
        function, pairs = self._by_loop.losses[loss], self._by_loop.loop.pairs
        try:
            with self._autocast():
                gradients = model_gradients(
                    self.model, parts, function, targets, self.params, pairs
                )
        except (RuntimeError, NotImplementedError) as problem:
            # These samples take another way through the model than those that were tried.
            logger.debug("torch.func cannot run %s: %s", type(self.model).__name__, problem)
            return self._by_loop.gradients(loss, rows)
        return {name: magnitude(value) for name, value in gradients.items()}


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

    def of_sample(sample: Any, target: Any) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = grad(sample_loss)(chosen, sample, target)
        return gradients

    return _vectorised(of_sample, (tuple(inputs), targets))


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
    rowwise_inputs = [i for i, flag in enumerate(rowwise) if flag]

    def of_sample(samples: tuple[Tensor, ...], g: Tensor) -> dict[str, Tensor]:
        given = list(everything)
        for i, sample in zip(rowwise_inputs, samples, strict=True):
            given[i] = sample.unsqueeze(0).clone()  # the module may write into it

        def output(weights: dict[str, Tensor]) -> Tensor:
            keywords = dict(zip(order, given[len(args) :], strict=True))
            out = functional_call(module, fixed | weights, tuple(given[: len(args)]), keywords)
            return out if isinstance(out, Tensor) else out[0]

        gradients: dict[str, Tensor] = vjp(output, chosen)[1](g.unsqueeze(0))[0]
        return gradients

    samples = tuple(everything[i].detach() for i in rowwise_inputs)
    return _vectorised(of_sample, (samples, gradient))


def _split(
    module: nn.Module, params: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    chosen = {name: p.detach() for name, p in params.items()}
    fixed = {n: t.detach() for n, t in module.named_parameters() if n not in chosen}
    return chosen, fixed | dict(module.named_buffers())


def _vectorised(
    of_sample: Callable[..., dict[str, Tensor]], batch: tuple[Any, Any]
) -> dict[str, Tensor]:
    in_dims = tuple(None if part is None else 0 for part in batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop")
        gradients = vmap(of_sample, in_dims=in_dims, randomness="error")(*batch)
    # Memory for each sample: vmap repeats equal values by a stride of 0.
    return {
        name: g.clone(memory_format=torch.contiguous_format) if 0 in g.stride() else g
        for name, g in gradients.items()
    }
