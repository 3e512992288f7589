"""Per-sample gradients of one or more losses over the same samples, in bounded memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from avalanche_cetl.common.processes import Processes, StartAgainError
from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information.gradients.assembly import make_bundles
from avalanche_cetl.information.gradients.batches import Batch
from avalanche_cetl.information.gradients.bundles import Bundle, Layout
from avalanche_cetl.information.gradients.capture import Captured
from avalanche_cetl.information.gradients.functional import current_autocast
from avalanche_cetl.information.gradients.plain import PlainGradients
from avalanche_cetl.information.gradients.plan import (
    Due,
    forget_plan,
    plan_routes,
    warn_of_plain_autograd,
)
from avalanche_cetl.information.gradients.proof import Proof
from avalanche_cetl.information.gradients.rotation import KroneckerBasis, rotated
from avalanche_cetl.information.gradients.routes import Route, StalePlanError
from avalanche_cetl.information.gradients.trial import Trial, run_routes
from avalanche_cetl.information.gradients.whole import ModelBundle, PlainBundle
from avalanche_cetl.information.likelihood import BoundLoss

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class PerSampleGradients:
    """Per-sample gradients of one or more losses over the same samples.

    The model is run in whatever mode it is in.

    :param model: that is run.
    :param inputs: tensors ``(N, ...)``.
    :param losses: one or more, over the same samples.
    :param params: keyed as ``model.named_parameters()``.
    :param chunk_bytes: bound on activations and gradients held at once, as far as one sample
        fits.
    :param state: the model's buffers and kept values, as every pass has to meet them.
    :param plainly: leave everything to plain autograd.
    :param processes: those that hold further samples.
    :param basis: in which the gradients of layers are.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        losses: Sequence[BoundLoss],
        params: Mapping[str, Tensor],
        chunk_bytes: int,
        state: ModelState,
        plainly: bool = False,
        processes: Processes | None = None,
        basis: KroneckerBasis | None = None,
    ):
        self.model, self.inputs, self.losses = model, list(inputs), list(losses)
        self.params, self.chunk_bytes = dict(params), chunk_bytes
        self.samples = len(self.inputs[0])
        self.processes = Processes(None) if processes is None else processes
        self.counts = [self.samples]
        self.layouts: dict[str, Layout] = {}
        self.basis = KroneckerBasis({}) if basis is None else basis
        self._autocast = current_autocast(self.inputs[0].device)
        self._kept: Batch | None = None
        self._state = state
        self._plain = PlainGradients(model, self.inputs, self.params, state)
        self._due = Due.NONE
        self.routes = {name: Route("plain") for name in self.params}
        self.batch_size, self.model_bytes = self.samples, 0
        # Two samples are what a trial takes by plain autograd: then the measurement is done.
        if self.samples > 2 and not plainly:
            plan, self._due = plan_routes(model, self.inputs, self.params, self.losses, self._plain)
            self.model_bytes, self.routes = plan.model_bytes, plan.routes
            self._plain.pairs = plan.pairs
            size = chunk_bytes // max(1, plan.sample_bytes)
            # A model that loses the batch axis of a single sample is given two at least.
            self.batch_size = max(1 + plan.pairs, min(self.samples, size))

    def batches(self) -> Iterator[Batch]:
        """Iterate over all samples, in as few batches as ``chunk_bytes`` allows.

        A single batch is kept, so that a second round over it costs no pass.
        """
        if self._kept is not None:
            yield self._kept
            return
        start = 0
        while start < self.samples:
            stop = min(self.samples, start + self.batch_size)
            if stop == self.samples - 1 and self._plain.pairs:
                stop = self.samples
            batch = self._run(slice(start, stop))
            if self.one_batch:
                self._kept = batch
            yield batch
            del batch
            start = stop

    def _run(self, rows: slice) -> Batch:
        self._state.put_back()
        with self._autocast():
            captured = self._capture(rows)
            bundles = make_bundles(self.model, self.params, self.routes, captured)
            bundles += self._whole_model(rows, captured)
            if self._due is not Due.NONE:
                self._prove(captured, bundles, self._due)
                self._due = Due.NONE
        if self.basis:
            bundles = rotated(bundles, self.basis)
        for bundle in bundles:
            for name in bundle.names:
                self.layouts.setdefault(name, bundle.layout(name))
        return Batch(rows.start, rows.stop - rows.start, bundles, self.chunk_bytes)

    def _capture(self, rows: slice) -> Captured:
        if self.samples == 1 and self._plain.pairs:
            outputs = tree_map(lambda t: t[:1], self._plain.outputs(0, pair=True))
            return Captured({}, {}, [loss.targets(outputs, rows) for loss in self.losses])
        return run_routes(self.model, self.inputs, self.losses, rows, self.routes)

    def _whole_model(self, rows: slice, captured: Captured) -> list[Bundle]:
        """Return bundles of the parameters that take a pass through the whole model."""
        chosen: dict[str, dict[str, Tensor]] = {"model": {}, "plain": {}}
        for name, parameter in self.params.items():
            kind = self.routes[name].kind
            if kind in chosen:
                chosen[kind][name] = parameter

        def plain(params: dict[str, Tensor]) -> PlainBundle:
            return PlainBundle(params, self._plain, rows.start, self.losses, captured.targets)

        bundles: list[Bundle] = [plain(chosen["plain"])] if chosen["plain"] else []
        if chosen["model"]:
            parts = [part[rows] for part in self.inputs]
            bundles.append(
                ModelBundle(
                    chosen["model"],
                    self.model,
                    parts,
                    self.losses,
                    captured.targets,
                    plain(chosen["model"]),
                    self.model_bytes,
                )
            )
        return bundles

    def _prove(self, captured: Captured, bundles: Sequence[Bundle], due: Due) -> None:
        """Compare the plan's gradients of the first batch with autograd's.

        :raises StalePlanError: where they differ.
        """
        if all(isinstance(bundle, PlainBundle) for bundle in bundles) and bundles:
            return
        n = captured.samples
        # The trial ran the first two samples of a call; a proof looks at others of the batch.
        rows = {
            Due.FULL: sorted({0, n // 3, 2 * n // 3}),
            Due.AGAIN: sorted({n // 3, 2 * n // 3}),
        }.get(due, [n // 2])
        count = 1 if due is Due.QUICK else len(self.losses)
        try:
            proof = Proof(self._plain, self.losses, captured, rows, count)
        except StalePlanError:
            raise
        except Exception as problem:
            # Such as a loss that reads all samples at once: routes are tried as they first were.
            logger.debug("a plan is tried anew: %s: %s", type(problem).__name__, problem)
            self._try_anew()
        else:
            proof.of(self.params, bundles)

    def _try_anew(self) -> None:
        two = [part[:2] for part in self.inputs]
        trial = Trial(self.model, two, self.params, self._plain, len(self.losses))
        tried = {n: r for n, r in self.routes.items() if r.kind not in ("model", "plain")}
        for name, verdict in trial.verdicts(tried).items():
            if not verdict.accepted:
                raise StalePlanError(name)

    def restore(self, name: str, value: Tensor) -> Tensor:
        """Return a tensor in a parameter's layout in the parameter's shape."""
        return self.layouts[name].restore(value) if name in self.layouts else value

    def exactly(self) -> torch.autocast:
        """Return a context without autocast, where sums are not rounded to half precision."""
        return torch.autocast(self.inputs[0].device.type, enabled=False)

    def meet(self, layouts: Sequence[tuple[str, torch.Size]]) -> None:
        """Wait for the other processes; raise where they are about to add other tensors."""
        # Whether torch.func or plain autograd runs the whole model makes no difference here.
        routes = {
            name: ("plain" if route.kind == "model" else route.kind, len(route.owners))
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


def with_engine(
    work: Callable[[PerSampleGradients], Result],
    model: nn.Module,
    inputs: Sequence[Tensor],
    losses: Sequence[BoundLoss],
    params: Mapping[str, Tensor],
    chunk_bytes: int,
    processes: Processes,
    state: ModelState,
    basis: KroneckerBasis | None = None,
) -> Result:
    """Run some work on per-sample gradients; on plain autograd's where a layer picks its rows.

    That a layer sees some samples only (heads chosen by task, experts) may show first in a
    later batch than the one that was tried. An error in one process is raised in the others too.

    :param work: that is run, once or again on plain autograd.
    :param model: see :class:`PerSampleGradients`, as ``inputs``, ``losses``, ``params``,
        ``chunk_bytes`` and ``processes``.
    :param state: of the model, put back before every pass.
    :param basis: in which the gradients of layers are.
    """

    def attempt(plainly: bool) -> Result:
        try:
            engine = PerSampleGradients(
                model, inputs, losses, params, chunk_bytes, state, plainly, processes, basis
            )
            with engine.exactly():
                return work(engine)
        except Exception as problem:
            processes.report(problem)
            raise

    with _differentiable(model):
        why = ""
        for _ in range(2 if processes.alone else 1):
            try:
                return attempt(plainly=False)
            except StalePlanError as problem:
                logger.debug("the plan of %s does not hold: %s", type(model).__name__, problem)
                forget_plan(model, inputs, params, len(losses))
                why = str(problem)
            except StartAgainError as problem:
                why = f"a layer sees some samples only: {problem}"
                break
        warn_of_plain_autograd(model, list(params), why)
        return attempt(plainly=True)


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
