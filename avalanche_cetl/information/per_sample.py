"""Per-sample gradients of one or more losses over the same samples, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from avalanche_cetl.information.bundles import (
    Bundle,
    LayerBundle,
    Layout,
    ModelBundle,
    ModuleBundle,
    Route,
    RowMismatchError,
    make_bundles,
)
from avalanche_cetl.information.functional import current_autocast
from avalanche_cetl.information.likelihood import BoundLoss
from avalanche_cetl.information.processes import Processes
from avalanche_cetl.information.routes import plan_routes, run_routes

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Per-sample gradients held at once: small enough for a CPU's cache, large enough for a GPU.
_CPU_BLOCK, _CUDA_BLOCK = 8 * 2**20, 256 * 2**20
#: Samples at a time where the gradient of a single one is larger than that.
_LARGE_LAYER_SAMPLES = 8


class Piece(NamedTuple):
    """Gradients of some samples, for all or some of a parameter's first layout dimension.

    :ivar rows: which samples of the batch.
    :ivar part: which entries of the first dimension.
    :ivar gradients: per loss asked for, by name ``(n, *layout)`` with that part alone.
    """

    rows: slice
    part: slice
    gradients: list[dict[str, Tensor]]


@dataclass
class Batch:
    """Some samples, and the bundles that give their gradients.

    :ivar start: index of the first sample.
    :ivar samples: how many there are.
    """

    start: int
    samples: int
    bundles: list[Bundle]
    chunk_bytes: int

    def pieces(self, bundle: Bundle, losses: Sequence[int]) -> Iterator[Piece]:
        """Walk over the samples, a few at a time: as many as stay in the processor's cache."""
        first = next(iter(bundle.params.values()))
        limit = _CPU_BLOCK if first.device.type == "cpu" else _CUDA_BLOCK
        if isinstance(bundle, ModelBundle | ModuleBundle):
            limit = self.chunk_bytes
        limit = max(1, min(limit, self.chunk_bytes) // len(losses))
        step = limit // max(1, bundle.row_bytes())
        if step == 0 and isinstance(bundle, LayerBundle) and bundle.factored:
            yield from self._parts(bundle, losses, limit)
            return
        step = max(1, min(self.samples, step))
        for rows in _slices(self.samples, step):
            found = [bundle.gradients(k, rows) for k in losses]
            # A parameter without dimensions has a layout of one entry.
            flat = [{n: g if g.dim() > 1 else g.unsqueeze(1) for n, g in f.items()} for f in found]
            yield Piece(rows, slice(None), flat)

    def _parts(self, bundle: LayerBundle, losses: Sequence[int], limit: int) -> Iterator[Piece]:
        """The same for a layer too large for that: a few rows of its weight at a time."""
        size = bundle.layout(bundle.name).shape
        for rows in _slices(self.samples, min(self.samples, _LARGE_LAYER_SAMPLES)):
            factors = [bundle.factors(rows, k) for k in losses]
            count = rows.stop - rows.start
            step = max(1, limit // (count * size[1:].numel() * 4))
            for part in _slices(size[0], step):
                found = [{bundle.name: f.left[:, part] @ _of(f.right, part)} for f in factors]
                yield Piece(rows, part, found)


def _of(right: Tensor, part: slice) -> Tensor:
    """Take a grouped layer's groups; without groups all rows share the right factor."""
    return right[:, part] if right.dim() == 4 else right


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(total, start + step))


class PerSampleGradients:
    """Per-sample gradients of one or more losses over the same samples.

    The model is run in whatever mode it is in.

    :param inputs: tensors ``(N, ...)``.
    :param params: keyed as ``model.named_parameters()``.
    :param chunk_bytes: bound on activations and gradients held at once, as far as one sample
        fits.
    :param whole_model: leave everything to torch.func.
    :param processes: those that hold further samples.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        losses: Sequence[BoundLoss],
        params: Mapping[str, Tensor],
        chunk_bytes: int,
        whole_model: bool = False,
        processes: Processes | None = None,
    ):
        self.model, self.inputs, self.losses = model, list(inputs), list(losses)
        self.params, self.chunk_bytes = dict(params), chunk_bytes
        self.samples = len(self.inputs[0])
        self.processes = Processes(None) if processes is None else processes
        self.counts = [self.samples]
        self.layouts: dict[str, Layout] = {}
        self._autocast = current_autocast(self.inputs[0].device)
        self._kept: Batch | None = None
        self.routes = {name: Route("model") for name in self.params}
        self.batch_size, self.model_bytes = self.samples, 0
        if self.samples > 2:
            plan = plan_routes(model, self.inputs, self.params, len(losses))
            self.model_bytes = plan.model_bytes
            if not whole_model:
                self.routes = plan.routes
                size = chunk_bytes // max(1, plan.sample_bytes)
                self.batch_size = max(1, min(self.samples, size))

    def batches(self) -> Iterator[Batch]:
        """All samples, in as few batches as ``chunk_bytes`` allows.

        A single batch is kept, so that a second round over it costs no pass.
        """
        if self._kept is not None:
            yield self._kept
            return
        for start in range(0, self.samples, self.batch_size):
            rows = slice(start, min(self.samples, start + self.batch_size))
            batch = self._run(rows)
            if self.one_batch:
                self._kept = batch
            yield batch
            del batch

    def _run(self, rows: slice) -> Batch:
        parts = [part[rows] for part in self.inputs]
        with self._autocast():
            captured = run_routes(self.model, self.inputs, self.losses, rows, self.routes)
            bundles = make_bundles(self.model, self.params, self.routes, captured)
            rest = {n: p for n, p in self.params.items() if self.routes[n].kind == "model"}
            if rest:
                bundles.append(
                    ModelBundle(
                        rest, self.model, parts, self.losses, captured.targets, self.model_bytes
                    )
                )
        for bundle in bundles:
            for name in bundle.names:
                self.layouts.setdefault(name, bundle.layout(name))
        return Batch(rows.start, len(parts[0]), bundles, self.chunk_bytes)

    def restore(self, name: str, value: Tensor) -> Tensor:
        """Bring a tensor in a parameter's layout into its shape."""
        return self.layouts[name].restore(value) if name in self.layouts else value

    def exactly(self) -> torch.autocast:
        """A context without autocast: sums and products are not rounded to half precision."""
        return torch.autocast(self.inputs[0].device.type, enabled=False)

    def meet(self, layouts: Sequence[tuple[str, torch.Size]]) -> None:
        """Wait for the other processes, and see that all are about to add the same tensors."""
        routes = {name: (route.kind, len(route.owners)) for name, route in self.routes.items()}
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


def with_engine(
    work: Callable[[PerSampleGradients], Result],
    model: nn.Module,
    inputs: Sequence[Tensor],
    losses: Sequence[BoundLoss],
    params: Mapping[str, Tensor],
    chunk_bytes: int,
    processes: Processes,
) -> Result:
    """Run some work on per-sample gradients; on torch.func's where a layer picks its rows.

    That a layer sees some samples only (heads chosen by task, experts) may show first in a
    later batch than the one that was tried. What one process meets, the others hear of.
    """

    def attempt(whole_model: bool) -> Result:
        try:
            engine = PerSampleGradients(
                model, inputs, losses, params, chunk_bytes, whole_model, processes
            )
            with engine.exactly():
                return work(engine)
        except Exception as problem:
            processes.report(problem)
            raise

    with _differentiable(model):
        try:
            return attempt(whole_model=False)
        except RowMismatchError as problem:
            logger.debug("%s sees some samples only: torch.func runs the whole model", problem)
        return attempt(whole_model=True)


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Run recurrent layers without oneDNN and cuDNN, which refuse gradients in eval mode."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
        yield
