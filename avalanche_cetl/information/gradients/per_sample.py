"""Per-sample gradients of one or more losses over the same samples, in bounded memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import tree_map

from avalanche_cetl.common.modes import evaluation_mode, gradients_allowed, outside_of_inference
from avalanche_cetl.common.processes import Processes, StartAgainError
from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information.gradients.capture import Captured
from avalanche_cetl.information.gradients.dispatch import dispatch, forget, warn_of_the_loop
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, rotated
from avalanche_cetl.information.gradients.grad_sample import Batch, GradSample, Layout
from avalanche_cetl.information.gradients.loop import Loop, LoopGradSample
from avalanche_cetl.information.gradients.precision import current_autocast, magnitude, to_float32
from avalanche_cetl.information.gradients.routes import Route, capture_for, grad_samples_of
from avalanche_cetl.information.gradients.verification import StaleRoutesError, verify
from avalanche_cetl.information.gradients.vmap import ModelVmap
from avalanche_cetl.information.likelihood import BoundLoss, Loss, LossName

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@contextmanager
def per_sample_gradients(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    losses: Sequence[tuple[Loss | LossName, Any]],
    params: Sequence[str] | Mapping[str, Tensor] | None,
    chunk_bytes: int,
    process_group: ProcessGroup | None,
    basis: KroneckerBasis | None = None,
    likelihood: str = "categorical",
    generator: torch.Generator | None = None,
) -> Iterator[PerSampleGradients]:
    """Enter the state in which a model is measured; leave model and inputs as they were.

    What is not described here is as in :func:`~avalanche_cetl.information.fisher_information`.

    :param model: any module.
    :param inputs: a tensor ``(N, ...)``, or several.
    :param losses: each with its targets.
    :param params: names of parameters, or parameters by name; None: all that require a gradient.
    :param chunk_bytes: bound on activations and gradients held at once.
    :param process_group: of the processes that hold further samples; None: this one alone.
    :param basis: in which the gradients of layers are.
    :param likelihood: how a loss that is named reads the output.
    :param generator: of sampled targets or vectors.
    """
    with gradients_allowed(model), evaluation_mode(model) as state, _differentiable(model):
        parts = outside_of_inference(_as_tuple(inputs))
        chosen = _select(model, params)
        bound = [
            BoundLoss(loss, outside_of_inference(targets), len(parts[0]), likelihood, generator)
            for loss, targets in losses
        ]
        yield PerSampleGradients(
            model, parts, bound, chosen, chunk_bytes, state, Processes(process_group),
            _within(basis, chosen),
        )  # fmt: skip


class PerSampleGradients:
    """Per-sample gradients of one or more losses over the same samples.

    :param model: that is run, in whatever mode it is in.
    :param inputs: tensors ``(N, ...)``.
    :param losses: one or more, over the same samples.
    :param params: keyed as ``model.named_parameters()``.
    :param chunk_bytes: bound on activations and gradients held at once, as far as one sample
        fits.
    :param state: the model's buffers and kept values, as every pass has to meet them.
    :param processes: those that hold further samples.
    :param basis: in which the gradients of layers are.
    :ivar routes: by parameter name, while :meth:`reduce` runs.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        losses: Sequence[BoundLoss],
        params: Mapping[str, Tensor],
        chunk_bytes: int,
        state: ModelState,
        processes: Processes,
        basis: KroneckerBasis,
    ):
        self.model, self.inputs, self.losses = model, list(inputs), list(losses)
        self.params, self.chunk_bytes = dict(params), chunk_bytes
        self.processes, self.basis, self._state = processes, basis, state
        self.samples = len(self.inputs[0])
        self.device = self.inputs[0].device
        self._autocast = current_autocast(self.device)

    def reduce(self, work: Callable[[PerSampleGradients], Result]) -> Result:
        """Return what some work makes of all :meth:`batches`.

        It is done along the routes that :func:`dispatch` found. They may turn out not to hold: for
        the batch, or because a layer sees some samples only (heads chosen by task, experts), which
        may show first in a later batch than the one that was tried. Then it is done once more, and
        at last by the loop. An error in one process is raised in the others too.
        """
        why = ""
        for _ in range(2 if self.processes.alone else 1):
            try:
                return self._attempt(work, by_loop=False)
            except StaleRoutesError as problem:
                logger.debug("the routes of %s do not hold: %s", type(self.model).__name__, problem)
                forget(self._loop, self.inputs, len(self.losses))
                why = str(problem)
            except StartAgainError as problem:
                why = f"a layer sees some samples only: {problem}"
                break
        warn_of_the_loop(self.model, list(self.params), why)
        return self._attempt(work, by_loop=True)

    def _attempt(self, work: Callable[[PerSampleGradients], Result], by_loop: bool) -> Result:
        try:
            self._choose_routes(by_loop)
            with torch.autocast(self.device.type, enabled=False):  # sums are not rounded to half
                return work(self)
        except Exception as problem:
            self.processes.report(problem)
            raise

    def _choose_routes(self, by_loop: bool) -> None:
        self.counts = [self.samples]
        self.routes = {name: Route("loop") for name in self.params}
        self.layouts: dict[str, Layout] = {}
        self._loop = Loop(self.model, self.inputs, self.params, self._state)
        self._kept: Batch | None = None
        self._to_verify = self._model_bytes = 0
        self.batch_size = self.samples
        # Two samples are what a trial takes by the loop: then the measurement is done.
        if by_loop or self.samples <= 2:
            return
        chosen = dispatch(self._loop, self.inputs, len(self.losses))
        self._to_verify = chosen.samples_to_verify(self.model, self.losses)
        self.routes, self._model_bytes = chosen.routes, chosen.model_bytes
        self._loop.pairs = chosen.pairs
        size = self.chunk_bytes // max(1, chosen.sample_bytes)
        # A model that loses the batch axis of a single sample is given two at least.
        self.batch_size = max(1 + chosen.pairs, min(self.samples, size))

    def batches(self) -> Iterator[Batch]:
        """Iterate over all samples, in as few batches as ``chunk_bytes`` allows.

        A single batch is kept, so that a second round over it costs no pass.
        """
        if self._kept is not None:
            yield self._within_basis(self._kept)
            return
        start = 0
        while start < self.samples:
            stop = min(self.samples, start + self.batch_size)
            if stop == self.samples - 1 and self._loop.pairs:
                stop = self.samples
            batch = self._run(slice(start, stop))
            if self.one_batch:
                self._kept = batch
            batch = self._within_basis(batch)
            yield batch
            if not self.one_batch:  # who reads it still holds it while the next one is captured
                batch.grad_samples.clear()
            start = stop

    def _run(self, rows: slice) -> Batch:
        self._state.put_back()
        with self._autocast():
            captured = self._capture(rows)
            gradients = grad_samples_of(self.model, self.params, self.routes, captured)
            gradients += self._of_the_whole_model(rows, captured)
            if self._to_verify:
                verify(
                    self._to_verify, self._loop, self.inputs, self.losses, captured, gradients,
                    self.routes,
                )  # fmt: skip
                self._to_verify = 0
        return Batch(rows, gradients, self.chunk_bytes)

    def _within_basis(self, batch: Batch) -> Batch:
        """Return a batch with the gradients of layers in the basis, if there is one."""
        if self.basis:
            batch = replace(batch, grad_samples=rotated(batch.grad_samples, self.basis))
        for sample in batch.grad_samples:
            self.layouts |= {name: sample.layout(name) for name in sample.names}
        return batch

    def _capture(self, rows: slice) -> Captured:
        if self.samples == 1 and self._loop.pairs:
            outputs = tree_map(lambda t: t[:1], self._loop.outputs(0, pair=True))
            return Captured({}, {}, [loss.targets(outputs, rows) for loss in self.losses])
        return capture_for(self.routes, self.model, self.inputs, self.losses, rows)

    def _of_the_whole_model(self, rows: slice, captured: Captured) -> list[GradSample]:
        """Return gradients of the parameters that take a pass through the whole model."""
        gradients: list[GradSample] = []
        for kind in ("loop", "model"):
            params = {n: p for n, p in self.params.items() if self.routes[n].kind == kind}
            if not params:
                continue
            by_loop = LoopGradSample(params, self._loop, rows.start, self.losses, captured.targets)
            if kind == "loop":
                gradients.append(by_loop)
                continue
            parts = [part[rows] for part in self.inputs]
            gradients.append(ModelVmap(params, self.model, parts, by_loop, self._model_bytes))
        return gradients

    def restored(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values in layout in the parameters' shapes, or in the basis; zeros for others."""
        result = {}
        for name, parameter in self.params.items():
            if name in self.basis.folded:
                continue
            shape = self.basis[name].shape if name in self.basis else parameter.shape
            if name in values:
                value = values[name]
                value = self.layouts[name].restore(value) if name in self.layouts else value
                result[name] = value.reshape(shape).contiguous()
            else:
                result[name] = to_float32(magnitude(parameter.detach())).new_zeros(shape)
        return result

    def meet(self, layouts: Sequence[tuple[str, torch.Size]]) -> None:
        """Wait for the other processes; raise where they are about to add other tensors."""
        # Whether torch.func or the loop runs the whole model makes no difference here.
        routes = {
            name: ("loop" if route.kind == "model" else route.kind, len(route.owners))
            for name, route in self.routes.items()
        }
        self.processes.agree((routes, [(name, tuple(shape)) for name, shape in layouts]))
        self.counts = self.processes.meet(self.samples)

    @property
    def total(self) -> int:
        """Samples of all processes, once they have met."""
        return sum(self.counts)

    @property
    def one_batch(self) -> bool:
        """Whether all samples fit into one batch, which is then kept."""
        return self.batch_size >= self.samples


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Run recurrent layers without oneDNN and cuDNN, which refuse gradients in eval mode."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    with warnings.catch_warnings():
        # Torch 2.14 warns at every change of these flags that there is no Intel GPU.
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


def _as_tuple(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the positional inputs of a model, all with the same first dimension N.

    :raises ValueError: when there are no samples, or lengths differ.
    :raises TypeError: for anything but tensors.
    """
    parts = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(parts, tuple | list) or not all(isinstance(p, Tensor) for p in parts):
        raise TypeError(
            "inputs have to be a tensor (N, ...) or a tuple of tensors, got "
            f"{type(inputs).__name__}; torch.as_tensor(...) makes one of an array."
        )
    parts = tuple(parts)
    lengths = {len(part) if part.dim() else 0 for part in parts}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "inputs need the same, non-zero number of samples in their first dimension; "
            f"got {[tuple(part.shape) for part in parts]}."
        )
    return parts


def _select(
    model: nn.Module, params: Sequence[str] | Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Return the parameters to measure: those named, or all that require a gradient.

    :param model: that has them.
    :param params: names (or a mapping keyed by names) out of ``model.named_parameters()``.
    :raises ValueError: when a name is unknown or nothing is left to measure.
    """
    named: dict[str, Tensor] = dict(model.named_parameters())
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError(
                "the model has no parameter that requires a gradient, so it has no Fisher "
                "information; name frozen parameters in `params=` to measure them."
            )
        return chosen
    if isinstance(params, str):
        raise TypeError(f"params={params!r} is one name; give a list of names, [{params!r}].")
    unknown = [name for name in params if name not in named]
    if unknown:
        raise ValueError(f"params {unknown} are not among the model's {sorted(named)}.")
    return {name: named[name] for name in params}


def _within(basis: KroneckerBasis | None, params: Mapping[str, Tensor]) -> KroneckerBasis:
    """Return the basis of those of its layers that are measured.

    :raises ValueError: when a layer is measured without a bias that is part of it.
    """
    layers = {name: layer for name, layer in (basis or {}).items() if name in params}
    for name, layer in layers.items():
        if layer.bias is not None and layer.bias not in params:
            raise ValueError(
                f"the basis of {name!r} has {layer.bias!r} in it, which params= leaves out: name "
                "both, or make the basis with the same params=."
            )
    return KroneckerBasis(layers)
