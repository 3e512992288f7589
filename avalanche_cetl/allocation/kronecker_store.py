"""KroneckerStore: what old tasks leave to hold, by direction of each layer's weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from avalanche_cetl.allocation.measure import Weights, gate
from avalanche_cetl.allocation.merged_basis import MergedBasis
from avalanche_cetl.allocation.parameters import anchors_of, basis_of, grown, place_of
from avalanche_cetl.allocation.proximal import QuadraticPenalty
from avalanche_cetl.allocation.sample import Heads
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.allocation.store import DiagonalStore, ImportanceStore
from avalanche_cetl.common.validation import check_weight
from avalanche_cetl.information.generalized import mean_importance, normalize_importance
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis


class KroneckerStore(ImportanceStore):
    """Importances by direction: one sum of limited rank, around the newest weights.

    With ``mode="separate"`` every task counts as much as any other, with ``"online"`` old ones
    fade; in both there is one sum and one gate. See
    :mod:`~avalanche_cetl.allocation.merged_basis`.

    :param damping: share of a layer's mean importance that all its weights have besides.
    """

    def __init__(
        self, settings: GFISettings, decay: float | None, keep: bool, damping: float = 0.0
    ):
        super().__init__(settings, decay, keep)
        self.damping = damping
        self._sum = MergedBasis(settings.rank)
        self._anchors: Weights = {}
        self._shapes: dict[str, torch.Size] = {}  # of the weights when they were measured

    def heads(self) -> list[Heads]:
        """Return the heads of all old tasks together: they have one gate."""
        if not self.importances:
            return []
        return [tuple(sorted({head for heads in self._heads.values() for head in heads}))]

    @property
    def basis(self) -> KroneckerBasis:
        """Return the basis of the sum."""
        return self._sum.basis

    @property
    def names(self) -> set[str]:
        """Return the names of the parameters that are held."""
        return set(self._sum.importance) | self._sum.basis.folded

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
        self.quadratic = QuadraticPenalty.within(self._sum.basis, importance, self._anchors)
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
        self._sum.grow({name: p.shape for name, p in params.items()})
        for name, value in self._anchors.items():
            if name in params:
                self._anchors[name] = grown(value, params[name]).to(params[name].device)
        if params:
            device = next(iter(params.values())).device
            self._sum.to(device)
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
        return {last: self.quadratic.importance} if self.holds and last is not None else {}

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
        self._sum.add(own, basis, shapes, 1.0 if self.decay is None else self.decay)
        newest = anchors_of(params)
        self._anchors = self._anchors | newest
        self._shapes = self._shapes | shapes
        if self.decay is not None:
            fisher, basis, newest = self._sum.importance, self._sum.basis, self._anchors
        self.importances[number] = {name: value.cpu() for name, value in fisher.items()}
        self.saved_params[number] = {name: value.cpu() for name, value in newest.items()}
        self.bases[number] = basis.to("cpu")
        self._heads[number] = heads
        self.quadratic = QuadraticPenalty()
        self._forget(number)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        merged = {"basis": self._sum.basis.state_dict(), "importance": self._sum.importance}
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        return super().state_dict() | {"sum": merged, "anchors": self._anchors, "shapes": shapes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy of a state."""
        super().load_state_dict(state)
        state = deepcopy(dict(state))
        self._sum.basis = basis_of(state["sum"]["basis"])
        self._sum.importance, self._anchors = state["sum"]["importance"], state["anchors"]
        known = {name: value.shape for name, value in self._anchors.items()}
        saved = state.get("shapes", {})
        self._shapes = known | {name: torch.Size(shape) for name, shape in saved.items()}


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
