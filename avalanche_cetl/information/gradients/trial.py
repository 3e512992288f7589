"""Is a way to per-sample gradients right? Tried on two samples, against plain autograd."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from avalanche_cetl.information.gradients import layers
from avalanche_cetl.information.gradients.bundles import (
    Bundle,
    Route,
    magnitude,
    make_bundles,
    rows_of,
)
from avalanche_cetl.information.gradients.capture import Captured, capture
from avalanche_cetl.information.gradients.functional import model_gradients
from avalanche_cetl.information.gradients.plain import Gradients, PlainGradients
from avalanche_cetl.information.likelihood import BoundLoss

logger = logging.getLogger(__name__)

#: How far a gradient may be from autograd's, relative to its norm: rounding, and in float32
#: near-ties in max pooling, which another batch may break differently (some 1e-3).
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
#: The same for half precision and under autocast, which rounds to three digits at every layer.
_HALF_TOLERANCE = 0.1
#: A gradient of a size below this share of the largest parameter's may be rounding alone: the bias
#: of a key in front of a softmax, or of a layer in front of an InstanceNorm, has none in truth.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
_HALF_ROUNDING = 1e-2


class Verdict(Enum):
    """What a trial on two samples says of a parameter's route."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSEEN = "unseen"  #: no gradient, which shows nothing; the layer is torch's own


def projection(outputs: Any, samples: int) -> Tensor:
    """Weigh all outputs with fixed irregular weights: a loss that everything matters to.

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
        weights = torch.sin(1.7 * index + 0.3).to(flat.dtype)
        part = (flat * weights).sum(1)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("the model gives no tensor with a row for each sample.")
    return total


class Activations:
    """Memory that a pass keeps for its backward pass, parameters left out."""

    def __init__(self, model: nn.Module):
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context that counts what autograd saves."""
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda t: t)

    @property
    def bytes(self) -> int:
        """The sum over storages."""
        return sum(self._sizes.values())


class Truth(NamedTuple):
    """Losses and plain autograd's gradients of two samples.

    :ivar values: ``(2,)``.
    :ivar gradients: per sample, by parameter name.
    :ivar sample_bytes: memory that a pass of one sample keeps, with room for torch.func.
    """

    values: Tensor
    gradients: list[Gradients]
    sample_bytes: int

    @classmethod
    def of(cls, plain: PlainGradients) -> Truth:
        """Run the first two samples, each on its own, on :func:`projection`."""
        activations = Activations(plain.model)
        with activations.counted():
            found = [plain.of(i, lambda out, rows: projection(out, len(rows))) for i in (0, 1)]
        values = torch.stack([value for value, _ in found])
        # Two passes, whose storages may or may not be the same; vmap holds about as much again.
        return cls(values, [gradients for _, gradients in found], 2 * activations.bytes)

    def reaches(self, name: str) -> bool:
        """Whether a parameter's gradient is not zero in both samples."""
        return any(g[name] is not None and bool(g[name].any()) for g in self.gradients)  # type: ignore[union-attr]


class Trial:
    """Two samples, what plain autograd says of them, and how routes compare.

    :param two: inputs ``(2, ...)``.
    :param losses: how many will be measured; for the memory of their gradients.
    :ivar sample_bytes: memory that one captured sample takes, after :meth:`verdicts`.
    :ivar mixes: whether samples were seen to influence one another.
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
        self.mixes = False
        self._loss = BoundLoss(lambda outputs: projection(outputs, 2), None, 2)
        self._room = Room(self.truth.gradients, strict=True)

    def verdicts(self, routes: Mapping[str, Route]) -> dict[str, Verdict]:
        """Run some parameters' routes (none of them ``"model"`` or ``"plain"``)."""
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
            self.mixes = True
            return dict.fromkeys(routes, Verdict.WRONG)
        gradient_bytes = 0
        for calls in captured.calls.values():
            for call in calls:
                for value in (*call.inputs, *call.named.values()):
                    if isinstance(value, Tensor):
                        activations.add(value)
                gradient_bytes += sum(g.nbytes for g in call.gradients if g is not None)
        # A quarter more, for what is computed from it: windows of images, products, squares.
        size = 5 * (activations.bytes + gradient_bytes * self.losses) // 8
        self.sample_bytes = max(self.sample_bytes, size)
        found = self._gradients(routes, captured)
        return {name: self._verdict(name, routes[name], found, captured) for name in routes}

    def _gradients(self, routes: Mapping[str, Route], captured: Captured) -> dict[str, Tensor]:
        """Gradients ``(2, *param.shape)`` of the parameters whose route gives any."""
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
            self._room.agree(value[i], gradients[name])
            for i, gradients in enumerate(self.truth.gradients)
        ):
            return Verdict.WRONG
        if route.kind == "module":
            calls = captured.calls[self.model.get_submodule(route.owners[0][0])]
            route.rowwise = rows_of(calls, 2)
        return Verdict.RIGHT

    def _torchs_own(self, name: str, route: Route, captured: Captured) -> bool:
        """Whether a layer without any gradient is torch's own, and called as a layer or not at all.

        So it is with heads that are not used, dead layers, and layers behind a scale of 0.
        """
        if route.kind != "layer":
            return False
        owners = [self.model.get_submodule(path) for path, _ in route.owners]
        unused = all(gradients[name] is None for gradients in self.truth.gradients)
        called = all(captured.calls[owner] for owner in owners)
        return (unused or called) and all(layers.plain(owner) for owner in owners)

    def whole_model(self, names: Sequence[str]) -> tuple[bool, str]:
        """Tell whether torch.func on the whole model is right for these, and why not."""
        chosen = {name: self.params[name] for name in names}
        try:
            found = model_gradients(
                self.model, self.two, self._loss_of_any, None, chosen, self.plain.pairs
            )
        except Exception as problem:
            return False, told(problem)
        for i, gradients in enumerate(self.truth.gradients):
            for name in names:
                if not self._room.agree(magnitude(found[name][i]), gradients[name]):
                    return False, f"torch.func gives other gradients of {name} than autograd"
        return True, ""

    @property
    def _loss_of_any(self) -> BoundLoss:
        """The projection, of one sample or of a pair."""
        rows = 2 if self.plain.pairs else 1
        return BoundLoss(lambda outputs: projection(outputs, rows), None, 2)


class Room:
    """How far gradients may lie from plain autograd's.

    :param truth: plain gradients of some samples, of all measured parameters.
    :param strict: allow for rounding in tiny gradients in float64 alone. In float32 a gate of
        1e-6, as new vision transformers have it, makes gradients as small as rounding does.
    """

    def __init__(self, truth: Sequence[Gradients], strict: bool):
        found = [g for gradients in truth for g in gradients.values() if g is not None]
        self._largest = max((float(torch.linalg.vector_norm(g)) for g in found), default=0.0)
        self._strict = strict

    def agree(self, found: Tensor, wanted: Tensor | None) -> bool:
        """Whether one sample's gradient is autograd's, up to rounding.

        :param found: real; for a complex parameter the absolute values.
        """
        wanted = torch.zeros_like(found) if wanted is None else magnitude(wanted.detach())
        difference = float(torch.linalg.vector_norm(found - wanted.to(found.dtype)))
        size = float(torch.linalg.vector_norm(wanted))
        share = _ROUNDING.get(wanted.dtype, _HALF_ROUNDING)
        if self._strict and wanted.dtype != torch.float64:
            share = 0.0
        return difference <= tolerance(wanted.dtype, wanted.device) * size + share * self._largest


def told(problem: Exception) -> str:
    """Return a problem's kind and its first line, for a log."""
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


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Return how far, relative to its norm, a gradient of that type may be from autograd's."""
    if torch.is_autocast_enabled(device.type):
        return _HALF_TOLERANCE
    return _TOLERANCE.get(dtype, _HALF_TOLERANCE)


def same_values(values: Tensor, alone: Tensor) -> bool:
    """Whether losses in a batch are those of the samples on their own, up to rounding."""
    room = 0.1 * tolerance(alone.dtype, alone.device)
    return bool(((values - alone).abs() <= room * (alone.abs() + alone.abs().mean())).all())
