"""Whether a route's gradients are the loop's: no route is used that was not compared with it.

Which route is right for a parameter is not guessed but tried, so that shared layers, tied weights,
custom forward passes and layers that mix samples find the one that holds for them.

- :class:`Trial`, of a network that is new: two samples, on a loss that reads every output, since a
  route has to be right for all losses. Two show whether samples influence one another, and whether
  a gradient belongs to its own sample.
- :func:`verify`, on some samples of the batch that is measured, with its own losses: it also sees
  parameters that a loss reads by itself, and losses and networks that depend on how many samples
  there are.

A route is either right, and differs from the loop by rounding, or wrong, and differs by a term.
The tolerances have to lie between the two. Measured over the 69 small networks that the tests try
(``tests/information/zoo.py``), as norms of differences over norms of gradients: a right route
differs by 3e-15 at the most in float64, by 2e-6 in float32 and by 0.04 under bfloat16 autocast; a
wrong one, in float64 and float32, by 0.4 at the least. It breaks where a wrong route differs by
less than the tolerance: a term that is missing from a gradient, but makes less than 0.5 % of it in
float32, is not seen. Nor is one that few samples have, where none of these is looked at.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from avalanche_cetl.information.gradients.capture import Activations, Captured, RowMismatchError
from avalanche_cetl.information.gradients.grad_sample import GradSample
from avalanche_cetl.information.gradients.grad_samplers import is_torchs_own
from avalanche_cetl.information.gradients.loop import Loop, LoopGradSample, RowLoss, row_loss
from avalanche_cetl.information.gradients.precision import magnitude
from avalanche_cetl.information.gradients.routes import Route, capture_for, grad_samples_of
from avalanche_cetl.information.gradients.vmap import model_gradients
from avalanche_cetl.information.likelihood import BoundLoss

logger = logging.getLogger(__name__)

#: How far a gradient may lie from the loop's, relative to its norm. In float32 it is not rounding
#: that decides, but near-ties in max pooling, which another batch may break differently: one of
#: them moves a gradient by some 1e-3.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
#: The same for half precision and under autocast, which rounds to three digits at every layer.
_HALF_TOLERANCE = 0.1
#: A gradient whose norm is below this share of the largest parameter's may be rounding alone: the
#: bias of a key in front of a softmax, or of a layer in front of an InstanceNorm, has none in
#: truth. Such a one has a relative error of 1, whatever computes it. The shares are some thousand
#: roundings of float64 (eps = 2e-16) and ten of float32 (eps = 1e-7); half precision has eps = 1e-3
#: to 8e-3.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
_HALF_ROUNDING = 1e-2
#: Losses are compared ten times as strictly as gradients: they pass no backward pass, and a loss
#: that differs is the sign of samples that influence one another.
_LOSS_SHARE = 0.1
_MORE = 8  # samples that are looked at besides, where one of three differs in float32
#: What a captured sample takes is multiplied by this, to leave room for what is computed from it a
#: few samples at a time: windows of images, products, squares.
_ROOM_TO_COMPUTE = 1.25


class StaleRoutesError(RowMismatchError):
    """Routes that were right once do not compute the loop's gradients any more."""


class Reference:
    """The loop's losses and gradients of some samples, with which a route's are compared.

    :param loop: over all samples of the call.
    :param loss: of single samples.
    :param rows: which samples.
    :param strict: allow for rounding in tiny gradients in float64 alone. In float32 a gate of
        1e-6, as new vision transformers have it, makes gradients as small as rounding does.
    :ivar values: losses, ``(n,)``.
    """

    def __init__(self, loop: Loop, loss: RowLoss, rows: Sequence[int], strict: bool):
        values, self._gradients = zip(*(loop.of(row, loss) for row in rows), strict=True)
        self.rows, self.values = list(rows), torch.stack(values)
        norms = [
            float(torch.linalg.vector_norm(g))
            for gradients in self._gradients
            for g in gradients.values()
            if g is not None
        ]
        self._largest, self._strict = max(norms, default=0.0), strict

    def unused(self, name: str) -> bool:
        """Return whether a parameter is no part of the loss of any sample."""
        return all(gradients[name] is None for gradients in self._gradients)

    def reaches(self, name: str) -> bool:
        """Return whether a parameter's gradient is not zero in some sample."""
        of_parameter = [gradients[name] for gradients in self._gradients]
        return any(g is not None and bool(g.any()) for g in of_parameter)

    def has_losses(self, values: Tensor) -> bool:
        """Return whether losses in a batch are those of the samples on their own, up to rounding.

        The mean of all losses counts as well as each loss by itself, which may be near 0.
        """
        alone = self.values
        room = _LOSS_SHARE * _tolerance(alone)
        return bool(((values - alone).abs() <= room * (alone.abs() + alone.abs().mean())).all())

    def distance(self, name: str, i: int, gradient: Tensor) -> float:
        """Return how far a gradient of the i-th sample is from the loop's, over its norm.

        :param name: of the parameter.
        :param i: number of the sample, from 0.
        :param gradient: real; for a complex parameter the absolute values.
        :return: 0 where rounding explains it; infinity where the loop has none.
        """
        wanted = self._gradients[i][name]
        wanted = torch.zeros_like(gradient) if wanted is None else magnitude(wanted.detach())
        difference = float(torch.linalg.vector_norm(gradient - wanted.to(gradient.dtype)))
        share = _ROUNDING.get(wanted.dtype, _HALF_ROUNDING)
        if self._strict and wanted.dtype != torch.float64:
            share = 0.0
        size = float(torch.linalg.vector_norm(wanted))
        if difference <= _tolerance(wanted) * size + share * self._largest:
            return 0.0
        return difference / size if size else math.inf

    def has_gradients(self, name: str, gradients: Tensor) -> list[bool]:
        """Return whether every sample's gradient, ``(n, *param.shape)``, is the loop's."""
        return [self.distance(name, i, gradient) == 0 for i, gradient in enumerate(gradients)]


def _tolerance(like: Tensor) -> float:
    """Return how far, relative to its norm, a gradient of that type may lie from the loop's."""
    if torch.is_autocast_enabled(like.device.type):
        return _HALF_TOLERANCE
    return _TOLERANCE.get(like.dtype, _HALF_TOLERANCE)


def verify(
    samples: int,
    loop: Loop,
    inputs: Sequence[Tensor],
    losses: Sequence[BoundLoss],
    captured: Captured,
    gradients: Sequence[GradSample],
    routes: Mapping[str, Route],
) -> None:
    """Compare gradients of the first batch with the loop's, on some of its samples.

    A loss may read all samples at once; then routes are tried as they were when they were chosen.

    :param samples: how many, 1 to 3; with 1 only the first loss is read.
    :param loop: over all inputs.
    :param inputs: of the batch, tensors ``(n, ...)``.
    :param losses: all that were captured.
    :param captured: the batch.
    :param gradients: along the routes, of those parameters that have any.
    :param routes: of all parameters.
    :raises StaleRoutesError: where they differ.
    """
    if gradients and all(isinstance(sample, LoopGradSample) for sample in gradients):
        return
    n = captured.samples
    # A trial ran the first two samples of a call; this looks at others of the batch.
    rows = {3: {0, n // 3, 2 * n // 3}, 2: {n // 3, 2 * n // 3}, 1: {n // 2}}[samples]
    by_loss: list[Reference] = []
    try:
        for k, loss in enumerate(losses[:1] if samples == 1 else losses):
            of_row = row_loss(loss, captured.targets[k])
            by_loss.append(Reference(loop, of_row, sorted(rows), strict=False))
            if not by_loss[k].has_losses(captured.values[k][sorted(rows)]):
                raise StaleRoutesError("a loss or a layer depends on the number of samples")
    except StaleRoutesError:
        raise
    except Exception as problem:
        logger.debug("routes are tried anew: %s", described(problem))
        trial = Trial(loop.model, [part[:2] for part in inputs], loop, len(losses))
        tried = {n: r for n, r in routes.items() if r.kind not in ("model", "loop")}
        wrong = [name for name, right in trial.verdicts(tried).items() if not right]
        if wrong:
            raise StaleRoutesError(wrong[0]) from problem
        return
    # In float32 a unit may lie so near a kink that rounding decides one sample's gradient: where
    # one sample differs, more are looked at.
    exact = len(rows) == 1 or all(p.dtype == torch.float64 for p in loop.params.values())
    more = sorted({(2 * i + 1) * n // (2 * _MORE) for i in range(_MORE)} - rows)
    for k, reference in enumerate(by_loss):
        refuted = _refuted(reference, k, loop.params, gradients)
        if not exact and more and 1 in map(len, refuted.values()):
            others = Reference(loop, row_loss(losses[k], captured.targets[k]), more, strict=False)
            found = _refuted(others, k, loop.params, gradients)
            refuted = {name: far and far + found[name] for name, far in refuted.items()}
        for name, far in refuted.items():
            if len(far) >= (1 if exact else 2):
                raise StaleRoutesError(
                    f"another gradient of {name} than autograd's, by {max(far):.2g} of its norm"
                )


def _refuted(
    reference: Reference, loss: int, params: Mapping[str, Tensor], samples: Sequence[GradSample]
) -> dict[str, list[float]]:
    """Return how far gradients of each parameter are from the loop's, in samples that differ."""
    refuted: dict[str, list[float]] = {name: [] for name in params}
    without = dict(params)
    for sample in samples:
        if not sample.reached(loss):
            continue
        for name in sample.names:
            without.pop(name)
        if isinstance(sample, LoopGradSample):
            continue
        for i, row in enumerate(reference.rows):
            for name, value in sample.in_shape(loss, slice(row, row + 1)).items():
                refuted[name].append(reference.distance(name, i, value[0]))
    for name, parameter in without.items():
        zeros = torch.zeros_like(magnitude(parameter.detach()))
        for i in range(len(reference.rows)):
            refuted[name].append(reference.distance(name, i, zeros))
    return {name: [far for far in found if far] for name, found in refuted.items()}


def projection(outputs: Any, samples: int) -> Tensor:
    """Return a loss that depends on every output: all of them, with fixed irregular weights.

    The weights are ``sin(1.7 k + 0.3)`` for output k: neither 1.7 nor 0.3 is a fraction of pi, so
    none of them is 0 and no two are equal. (Equal weights would hide whatever a softmax or a norm
    in front of the outputs keeps constant.) They take no random numbers from the user's generators.

    :param outputs: a tensor, or tensors in tuples, lists and dicts.
    :param samples: n; outputs without a dimension of that size in front (or, as recurrent layers
        have it, behind the first) are left out.
    :return: ``(n,)``.
    :raises ValueError: when no output has one.
    """
    total: Tensor | None = None
    for leaf in tree_leaves(outputs):
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            continue
        if leaf.is_complex():
            leaf = torch.view_as_real(leaf)
        if leaf.dim() > 1 and leaf.shape[0] != samples and leaf.shape[1] == samples:
            leaf = leaf.transpose(0, 1)
        if not leaf.dim() or leaf.shape[0] != samples:
            continue
        flat = leaf.reshape(samples, -1)
        index = torch.arange(flat.shape[1], device=flat.device, dtype=torch.float64)
        part = (flat * torch.sin(1.7 * index + 0.3).to(flat.dtype)).sum(1)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("the model gives no tensor with a row for each sample.")
    return total


class Trial:
    """The loop's gradients of the first two samples, and how routes compare with those.

    :param model: that is run.
    :param two: inputs ``(2, ...)``.
    :param loop: of the same model, whose first samples they are.
    :param losses: how many will be measured; for the memory of their gradients.
    :ivar reference: of the two samples.
    :ivar sample_bytes: memory that one captured sample takes, after :meth:`verdicts`.
    :ivar model_bytes: memory that a pass of one sample keeps, with room for torch.func.
    :ivar mixes_samples: whether no route through a batch is right: its samples interact.
    :ivar problems: by parameter, what was wrong with a route that the last :meth:`verdicts`
        found to compute other gradients than the loop, or none.
    """

    def __init__(self, model: nn.Module, two: Sequence[Tensor], loop: Loop, losses: int):
        self.model, self.two, self.loop, self.losses = model, list(two), loop, losses
        self.params = loop.params
        activations = Activations(model)
        with activations.counted():
            self.reference = Reference(
                loop, lambda outputs, rows: projection(outputs, len(rows)), (0, 1), strict=True
            )
        # Two passes, whose storages may or may not be the same; vmap holds about as much again.
        self.sample_bytes, self.model_bytes = 0, 2 * activations.bytes
        self.mixes_samples = False
        self.problems: dict[str, str] = {}

    def verdicts(self, routes: Mapping[str, Route]) -> dict[str, bool]:
        """Run some parameters' routes, and return for each whether it may be taken.

        Where the model cannot be run this way at all, copies in the place of parameters are
        blamed first: routes that are left out of the answer have to be tried again without them.

        :param routes: by parameter name, none of kind ``"model"`` or ``"loop"``.
        """
        self.problems = {}
        loss = BoundLoss(lambda outputs: projection(outputs, 2), None, 2)
        activations = Activations(self.model)
        try:
            with activations.counted():
                captured = capture_for(routes, self.model, self.two, [loss], slice(0, 2))
        except Exception as problem:
            logger.debug("%s cannot be captured: %s", type(self.model).__name__, problem)
            expanded = [name for name, route in routes.items() if route.kind == "expanded"]
            return dict.fromkeys(expanded or routes, False)
        self.mixes_samples = not self.reference.has_losses(captured.values[0])
        if self.mixes_samples:
            logger.debug("%s mixes samples: each runs on its own", type(self.model).__name__)
            return dict.fromkeys(routes, False)
        gradient_bytes = 0
        for call in (call for calls in captured.calls.values() for call in calls):
            for value in call.values:
                if isinstance(value, Tensor):
                    activations.add(value)
            gradient_bytes += sum(g.nbytes for g in call.gradients if g is not None)
        both = activations.bytes + gradient_bytes * self.losses
        self.sample_bytes = max(self.sample_bytes, int(_ROOM_TO_COMPUTE * both) // 2)
        gradients = self._gradients(routes, captured)
        return {n: self._is_right(n, r, gradients.get(n), captured) for n, r in routes.items()}

    def _gradients(self, routes: Mapping[str, Route], captured: Captured) -> dict[str, Tensor]:
        """Return gradients ``(2, *param.shape)`` of the parameters whose route computes any."""
        gradients: dict[str, Tensor] = {}
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, route in routes.items():  # parameters of one module come together
            path = route.owners[0][0] if route.kind == "module" else name
            groups.setdefault((route.kind, path), []).append(name)
        for names in groups.values():
            chosen = {name: self.params[name] for name in names}
            try:
                for sample in grad_samples_of(self.model, chosen, routes, captured):
                    if sample.reached(0):
                        gradients |= sample.in_shape(0, slice(0, 2))
            except Exception as problem:
                logger.debug("%s: %s: %s", names, type(problem).__name__, problem)
                self.problems |= dict.fromkeys(names, described(problem))
        return gradients

    def _is_right(
        self, name: str, route: Route, gradients: Tensor | None, captured: Captured
    ) -> bool:
        seen = gradients is not None and bool(gradients.any())
        if not seen and not self.reference.reaches(name):
            return self._is_torchs_own(name, route, captured)
        if gradients is None or not all(self.reference.has_gradients(name, gradients)):
            self.problems.setdefault(name, "it gives other gradients than autograd")
            return False
        calls = [call for module in route.modules(self.model) for call in captured.calls[module]]
        route.rowwise = [call.rowwise(2) for call in calls]
        if route.kind == "closed_form":
            route.rowwise = [tuple(map(all, zip(*route.rowwise, strict=False)))]
        return True

    def _is_torchs_own(self, name: str, route: Route, captured: Captured) -> bool:
        """Return whether a layer without a gradient is torch's, called as a layer or not at all.

        So it is with heads that are not used, dead layers, and layers behind a scale of 0.
        """
        if route.kind != "closed_form":
            return False
        modules = route.modules(self.model)
        called = all(captured.calls[module] for module in modules)
        return (self.reference.unused(name) or called) and all(
            is_torchs_own(module, local)
            for module, (_, local) in zip(modules, route.owners, strict=True)
        )

    def whole_model(self, names: Sequence[str]) -> str:
        """Return why torch.func on the whole model is not right for these; empty where it is."""
        rows = 2 if self.loop.pairs else 1
        loss = BoundLoss(lambda outputs: projection(outputs, rows), None, 2)
        chosen = {name: self.params[name] for name in names}
        try:
            gradients = model_gradients(self.model, self.two, loss, None, chosen, self.loop.pairs)
        except Exception as problem:
            return described(problem)
        for name in names:
            if not all(self.reference.has_gradients(name, magnitude(gradients[name]))):
                return f"torch.func gives other gradients of {name} than autograd"
        return ""


def described(problem: Exception) -> str:
    """Return an exception's type and the first line of its message, for a log."""
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0][:160]}"
