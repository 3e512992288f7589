"""The trial of a route: two samples, whose gradients plain autograd computes too."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from enum import Enum

from torch import Tensor, nn

from avalanche_cetl.information.gradients.agreement import Agreement, same_values
from avalanche_cetl.information.gradients.assembly import make_bundles, rows_of
from avalanche_cetl.information.gradients.bundles import Bundle
from avalanche_cetl.information.gradients.capture import Captured, capture
from avalanche_cetl.information.gradients.functional import model_gradients
from avalanche_cetl.information.gradients.layers import is_torchs_own
from avalanche_cetl.information.gradients.plain import PlainGradients
from avalanche_cetl.information.gradients.precision import magnitude
from avalanche_cetl.information.gradients.routes import Route
from avalanche_cetl.information.gradients.truth import Activations, Truth, projection
from avalanche_cetl.information.likelihood import BoundLoss

logger = logging.getLogger(__name__)

#: What a captured sample takes is multiplied by this, to leave room for what is computed from it a
#: few samples at a time: windows of images, products, squares.
_ROOM_TO_COMPUTE = 1.25


class Verdict(Enum):
    """What a trial on two samples found out about a parameter's route."""

    RIGHT = "right"
    WRONG = "wrong"  #: other gradients than autograd's, or none at all
    MIXES_SAMPLES = "mixes samples"  #: no route through a batch is right: its samples interact
    UNSEEN = "unseen"  #: no gradient, which shows nothing; the layer is torch's own

    @property
    def accepted(self) -> bool:
        """Whether the route may be taken."""
        return self in (Verdict.RIGHT, Verdict.UNSEEN)


class Trial:
    """Two samples, plain autograd's gradients of them, and how routes compare with those.

    :param model: that is run.
    :param two: inputs ``(2, ...)``.
    :param params: to measure, by name.
    :param plain: of the same model and parameters.
    :param losses: how many will be measured; for the memory of their gradients.
    :ivar sample_bytes: memory that one captured sample takes, after :meth:`verdicts`.
    :ivar problems: by parameter, what was wrong with a route that the last :meth:`verdicts`
        found to compute other gradients than autograd, or none.
    """

    def __init__(
        self,
        model: nn.Module,
        two: Sequence[Tensor],
        params: Mapping[str, Tensor],
        plain: PlainGradients,
        losses: int,
    ):
        self.model, self.two, self.params, self.plain = model, list(two), dict(params), plain
        self.losses = losses
        self.truth = Truth.of(plain)
        self.sample_bytes = 0
        self.problems: dict[str, str] = {}
        self._loss = BoundLoss(lambda outputs: projection(outputs, 2), None, 2)
        self._agreement = Agreement(self.truth.gradients, strict=True)

    def verdicts(self, routes: Mapping[str, Route]) -> dict[str, Verdict]:
        """Run some parameters' routes, and judge each of them.

        Where the model cannot be run this way at all, copies in the place of parameters are
        blamed first: routes that are left out of the answer have to be tried again without them.

        :param routes: by parameter name, none of kind ``"model"`` or ``"plain"``.
        """
        self.problems = {}
        activations = Activations(self.model)
        try:
            with activations.counted():
                captured = run_routes(self.model, self.two, [self._loss], slice(0, 2), routes)
        except Exception as problem:
            logger.debug("%s cannot be captured: %s", type(self.model).__name__, problem)
            expanded = [name for name, route in routes.items() if route.kind == "expanded"]
            return {n: Verdict.WRONG for n in expanded or routes}
        if not same_values(captured.values[0], self.truth.values):
            logger.debug("%s mixes samples: each runs on its own", type(self.model).__name__)
            return dict.fromkeys(routes, Verdict.MIXES_SAMPLES)
        gradient_bytes = 0
        for calls in captured.calls.values():
            for call in calls:
                for value in (*call.inputs, *call.named.values()):
                    if isinstance(value, Tensor):
                        activations.add(value)
                gradient_bytes += sum(g.nbytes for g in call.gradients if g is not None)
        both = activations.bytes + gradient_bytes * self.losses
        self.sample_bytes = max(self.sample_bytes, int(_ROOM_TO_COMPUTE * both) // 2)
        found = self._gradients(routes, captured)
        return {name: self._verdict(name, routes[name], found, captured) for name in routes}

    def _gradients(self, routes: Mapping[str, Route], captured: Captured) -> dict[str, Tensor]:
        """Return gradients ``(2, *param.shape)`` of the parameters whose route computes any."""
        found: dict[str, Tensor] = {}
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, route in routes.items():  # parameters of one module come together
            path = route.owners[0][0] if route.kind == "module" else name
            groups.setdefault((route.kind, path), []).append(name)
        for names in groups.values():
            try:
                chosen = {name: self.params[name] for name in names}
                for bundle in make_bundles(self.model, chosen, routes, captured):
                    found.update(self._of(bundle))
            except Exception as problem:
                logger.debug("%s: %s: %s", names, type(problem).__name__, problem)
                self.problems.update(dict.fromkeys(names, described(problem)))
        return found

    def _of(self, bundle: Bundle) -> dict[str, Tensor]:
        if not bundle.alive(0):
            return {}
        values = bundle.gradients(0, slice(0, 2))
        values = {name: bundle.layout(name).restore(value) for name, value in values.items()}
        return {n: v for n, v in values.items() if v.shape == (2, *self.params[n].shape)}

    def _verdict(
        self, name: str, route: Route, found: Mapping[str, Tensor], captured: Captured
    ) -> Verdict:
        value = found.get(name)
        seen = (value is not None and bool(value.any())) or self.truth.reaches(name)
        if not seen:
            return Verdict.UNSEEN if self._torchs_own(name, route, captured) else Verdict.WRONG
        if value is None or not all(
            self._agreement.holds(value[i], gradients[name])
            for i, gradients in enumerate(self.truth.gradients)
        ):
            self.problems.setdefault(name, "it gives other gradients than autograd")
            return Verdict.WRONG
        owners = [self.model.get_submodule(path) for path, _ in route.owners]
        flags = rows_of([call for owner in owners for call in captured.calls[owner]], 2)
        if route.kind == "layer":
            flags = [tuple(map(all, zip(*flags, strict=False)))]
        route.rowwise = flags
        return Verdict.RIGHT

    def _torchs_own(self, name: str, route: Route, captured: Captured) -> bool:
        """Return whether a layer without a gradient is torch's, called as a layer or not at all.

        So it is with heads that are not used, dead layers, and layers behind a scale of 0.
        """
        if route.kind != "layer":
            return False
        owners = [(self.model.get_submodule(path), local) for path, local in route.owners]
        unused = all(gradients[name] is None for gradients in self.truth.gradients)
        called = all(captured.calls[owner] for owner, _ in owners)
        return (unused or called) and all(is_torchs_own(*owner) for owner in owners)

    def whole_model(self, names: Sequence[str]) -> tuple[bool, str]:
        """Return whether torch.func on the whole model is right for these; if not, why."""
        chosen = {name: self.params[name] for name in names}
        try:
            found = model_gradients(
                self.model, self.two, self._loss_of_any, None, chosen, self.plain.pairs
            )
        except Exception as problem:
            return False, described(problem)
        for i, gradients in enumerate(self.truth.gradients):
            for name in names:
                if not self._agreement.holds(magnitude(found[name][i]), gradients[name]):
                    return False, f"torch.func gives other gradients of {name} than autograd"
        return True, ""

    @property
    def _loss_of_any(self) -> BoundLoss:
        """The projection, of one sample or of a pair."""
        rows = 2 if self.plain.pairs else 1
        return BoundLoss(lambda outputs: projection(outputs, rows), None, 2)


def described(problem: Exception) -> str:
    """Return an exception's type and the first line of its message, for a log."""
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0][:160]}"


def run_routes(
    model: nn.Module,
    inputs: Sequence[Tensor],
    losses: Sequence[BoundLoss],
    rows: slice,
    routes: Mapping[str, Route],
) -> Captured:
    """Run the model once for all routes but ``"model"`` and ``"plain"``."""
    modules: dict[nn.Module, None] = {}
    for route in routes.values():
        modules.update(dict.fromkeys(model.get_submodule(path) for path, _ in route.owners))
    expand = [name for name, route in routes.items() if route.kind == "expanded"]
    return capture(model, inputs, losses, rows, list(modules), expand)
