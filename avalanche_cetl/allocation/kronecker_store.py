"""KroneckerStore: what old tasks leave to hold, by direction of each layer's weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from avalanche_cetl.allocation.measure import Weights, gate
from avalanche_cetl.allocation.merged_basis import MergedBasis
from avalanche_cetl.allocation.parameters import anchors_of, grown, place_of
from avalanche_cetl.allocation.proximal import QuadraticPenalty
from avalanche_cetl.allocation.sample import Heads
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.allocation.store import DiagonalStore, ImportanceStore
from avalanche_cetl.common.validation import check_weight
from avalanche_cetl.information.generalized import mean_importance, normalize_importance
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis

#: From how many directions on, as a multiple of one task's rank, small tasks wait for each other,
#: and how many of them at most.
LARGE, MANY = 2, 16


class KroneckerStore(ImportanceStore):
    """Importances by direction: one sum of limited rank, around the newest weights.

    With ``mode="separate"`` every task counts as much as any other, with ``"online"`` old ones
    fade; in both there is one sum and one gate. See
    :mod:`~avalanche_cetl.allocation.merged_basis`.

    A large sum takes small tasks in together: tasks of few images have few directions each, and to
    bring one of them into a sum of hundreds costs as much as to bring in many. Where the sum has
    more than :data:`LARGE` times the rank of a task, and nothing is gated, damped or fading, they
    wait in a sum of their own until that one has as many directions as one task may have, or until
    :data:`MANY` wait. Both sums are held meanwhile, in the loss; a proximal step, which is of one
    quadratic, brings them together (:meth:`join`).

    :param damping: share of a layer's mean importance that all its weights have besides.
    """

    def __init__(
        self, settings: GFISettings, decay: float | None, keep: bool, damping: float = 0.0
    ):
        super().__init__(settings, decay, keep)
        self.damping = damping
        self._sum = MergedBasis(settings.rank)
        self._waiting = MergedBasis(settings.rank)
        self._anchors: Weights = {}
        self._shapes: dict[str, torch.Size] = {}  # of the weights when they were measured

    def heads(self) -> list[Heads]:
        """Return the heads of all old tasks together: they have one gate."""
        if not self.importances:
            return []
        return [tuple(sorted({head for heads in self._heads.values() for head in heads}))]

    @property
    def basis(self) -> KroneckerBasis:
        """Return the basis of the sum of all."""
        return self._all().basis

    @property
    def names(self) -> set[str]:
        """Return the names of the parameters that are held."""
        sums = (self._sum, self._waiting)
        return {name for one in sums for name in (*one.importance, *one.basis.folded)}

    def _all(self) -> MergedBasis:
        """Return the sum of all old tasks; what waits goes on waiting."""
        if not self._waiting.importance:
            return self._sum
        total = MergedBasis(self.settings.rank)
        total.basis, total.importance = self._sum.basis, dict(self._sum.importance)
        shapes = {name: value.shape for name, value in self._anchors.items()}
        total.add(self._waiting.importance, self._waiting.basis, shapes)
        return total

    def _may_wait(self) -> bool:
        """Return whether there may be two sums."""
        return self.decay is None and not self.settings.gates and not self.damping

    def _waits(self) -> bool:
        """Return whether what has come goes on waiting for more."""
        large = self._sum.directions > LARGE * self.settings.rank
        few = self._waiting.directions < self.settings.rank and self._waiting.count < MANY
        return self._may_wait() and large and few

    def _take_in(self, decay: float) -> None:
        """Let the sum fade, and take in what waits."""
        shapes = {name: value.shape for name, value in self._anchors.items()}
        self._sum.add(self._waiting.importance, self._waiting.basis, shapes, decay)
        self._waiting = MergedBasis(self.settings.rank)

    def join(self) -> None:
        """Bring what waits into the sum, and hold that alone."""
        if self._waiting.importance:
            self._take_in(1.0)
            if self.quadratic.beside:
                self._hold(self._sum.importance)

    def hold(
        self, params: Weights, relative: Mapping[Heads, Weights], generator: torch.Generator
    ) -> None:
        """Gate the sum."""
        self.holds, self.shared = True, {}
        last = self._last()
        if last is None:
            return
        importance = self._sum.importance
        for rf in relative.values():
            importance, self.shared[last] = self._gated(importance, rf, generator)
        self._hold(importance)

    def _hold(self, importance: Weights) -> None:
        """Make the quadratic, of an importance in the basis of the sum and of what waits."""
        self.quadratic = QuadraticPenalty.within(self._sum.basis, importance, self._anchors)
        if self._waiting.importance:
            waiting = self._waiting.basis, self._waiting.importance
            self.quadratic.beside = QuadraticPenalty.within(*waiting, self._anchors)
        if self.damping:
            self._damp()

    def _damp(self) -> None:
        """Let the quadratic hold all weights of each layer a little, as they were measured."""
        for name, importance in self._sum.importance.items():
            layer = self._sum.basis.get(name)
            own = (name,) if layer is None else layer.parameters
            count = sum(self._shapes[one].numel() for one in own)
            mean = self.damping * float(importance.sum(dtype=torch.float64)) / count
            for one in own:
                self.quadratic.damping[one] = mean
                self.quadratic.centres[one] = self._anchors[one][place_of(self._shapes[one])]

    def grow(self, params: Weights) -> None:
        """Bring sum and anchors to the shapes of a network that may have grown, on its device."""
        for one in (self._sum, self._waiting):
            one.grow({name: p.shape for name, p in params.items()})
        for name, value in self._anchors.items():
            if name in params:
                self._anchors[name] = grown(value, params[name]).to(params[name].device)
        if params:
            device = next(iter(params.values())).device
            for one in (self._sum, self._waiting):
                one.to(device)
            self.quadratic.to(device)

    def _gated(
        self, importance: Weights, relative: Weights, generator: torch.Generator
    ) -> tuple[Weights, dict[str, float]]:
        """Gate the sum; the mean of what is left is what the mean of all was."""
        measured = {name: value for name, value in importance.items() if name in relative}
        found, shared = gate(measured, relative, self.settings, generator, self.basis)
        if self.settings.normalize:
            mean = mean_importance(measured, self.basis)
            found = {name: value * mean for name, value in found.items()}
        return importance | found, shared

    @property
    def gated(self) -> dict[int, Weights]:
        """Return the sum as it is held, by the last task; empty between tasks."""
        last = self._last()
        if not self.holds or last is None:
            return {}
        one = self._all().importance if self.quadratic.beside else self.quadratic.importance
        return {last: one}

    def add(
        self,
        number: int,
        fisher: Weights,
        basis: KroneckerBasis | None,
        params: Weights,
        heads: Heads,
    ) -> None:
        """Take in the task that ends, after it was rescaled where the settings want it."""
        assert basis is not None
        own = normalize_importance(fisher, basis) if self.settings.normalize else fisher
        shapes = {name: p.shape for name, p in params.items()}
        self._sum.grow(shapes)  # refused before anything has changed
        self._waiting.add(own, basis, shapes)
        newest = anchors_of(params)
        self._anchors = self._anchors | newest
        self._shapes = self._shapes | shapes
        if not self._waits():
            self._take_in(1.0 if self.decay is None else self.decay)
        if self.decay is not None:
            fisher, basis, newest = self._sum.importance, self._sum.basis, self._anchors
        self.importances[number] = {n: value.to("cpu", copy=True) for n, value in fisher.items()}
        self.saved_params[number] = {name: value.cpu() for name, value in newest.items()}
        self.bases[number] = basis.to("cpu")
        self._heads[number] = heads
        self.quadratic = QuadraticPenalty()
        self._forget(number)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        sums = {"sum": self._sum.state_dict(), "waiting": self._waiting.state_dict()}
        return super().state_dict() | sums | {"anchors": self._anchors, "shapes": shapes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy of a state."""
        super().load_state_dict(state)
        state = deepcopy(dict(state))
        self._sum.load_state_dict(state["sum"])
        self._waiting = MergedBasis(self.settings.rank)
        if "waiting" in state:  # since version 0.3
            self._waiting.load_state_dict(state["waiting"])
        self._anchors = state["anchors"]
        known = {name: value.shape for name, value in self._anchors.items()}
        saved = state.get("shapes", {})
        self._shapes = known | {name: torch.Size(shape) for name, shape in saved.items()}
        if not self._may_wait():  # as the store that is saved might
            self.join()


def store_of(
    settings: GFISettings, decay: float | None, keep: bool, damping: float
) -> ImportanceStore:
    """Return the store of the settings' basis.

    :param settings: see :class:`ImportanceStore`, as the next two.
    :param decay: factor of the old importance.
    :param keep: keep importances of past tasks.
    :param damping: see :class:`KroneckerStore`.
    :raises ValueError: for a damping out of range, or in the diagonal basis.
    """
    check_weight("damping", damping)
    if settings.basis == "kronecker":
        return KroneckerStore(settings, decay, keep, damping)
    if damping:
        raise ValueError(f"damping={damping} goes with the Kronecker basis alone.")
    return DiagonalStore(settings, decay, keep)
