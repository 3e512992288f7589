"""Dynamic Weight Allocation: when GFI1 to GFI3 are measured, and the penalties they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_cetl.allocation.importance import PAIRS, Importance, measure_importance
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.models.coupled import CoupledModel


class Allocation:
    """The importances of Algorithm 1 and the penalties made of them (eqs. 10, 11).

    :param kind: of importance: ``"fisher"``, ``"gfi"``; None: nothing is measured.
    :param settings: how it is measured.
    :param strength: lambda of eq. 11; 0: nothing is measured.
    :ivar importance: the latest GFI1 to GFI3, by name.
    """

    def __init__(
        self, kind: Literal["fisher", "gfi"] | None, settings: GFISettings, strength: float
    ):
        self.kind, self.settings, self.strength = kind, settings, strength
        self.importance: dict[str, Importance] = {}
        self._generator = torch.Generator().manual_seed(settings.seed)

    def configure(
        self, kind: Literal["fisher", "gfi"] | None, settings: GFISettings, strength: float
    ) -> None:
        """Take other options; what was measured stays, unless it was of another kind."""
        if kind != self.kind:
            self.importance = {}
        if settings.seed != self.settings.seed:
            self._generator.manual_seed(settings.seed)
        self.kind, self.settings, self.strength = kind, settings, strength

    def penalty(self, name: str, model: CoupledModel) -> Tensor | None:
        """Return DWA with the latest importance of that name; None before there is one."""
        if name not in self.importance:
            return None
        return self.importance[name].penalty(model, self.strength)

    def refresh(
        self,
        names: tuple[str, ...],
        model: CoupledModel,
        epoch: int,
        rows: int,
        read: Callable[[list[int]], Batch],
        processes: Processes | None = None,
    ) -> None:
        """Measure importances at the weights as they are now, theta*, where they are due.

        :param names: of the importances that a stage needs, ``"GFI1"`` to ``"GFI3"``.
        :param model: the coupled network.
        :param epoch: rounds done in this experience.
        :param rows: number of target rows.
        :param read: returns target rows, without training augmentation.
        :param processes: that share the measurement.
        """
        if self.kind is None or self.strength == 0:
            return
        if model.source is None:
            # Without S there is no L_rs: T1 has one task only, and nothing to allocate.
            names = tuple(name for name in names if name == "GFI3")
        known = all(name in self.importance for name in names)
        if known and epoch % self.settings.refresh_every != 0:
            return
        for name in names:
            order = torch.randperm(rows, generator=self._generator)
            drawn = order[: self.settings.measured_of(rows)]
            self.importance[name] = measure_importance(
                model,
                PAIRS[name],
                read(drawn.tolist()),
                self.settings,
                self.kind,
                self._generator,
                processes,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the importances and the state of the draws, for checkpoints."""
        return {
            "importance": {name: one.state_dict() for name, one in self.importance.items()},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them; the importances stay on the device that they are on."""
        kept = state["importance"].items()
        self.importance = {name: Importance.from_state_dict(one) for name, one in kept}
        self._generator.set_state(state["generator"])

    def to(self, device: torch.device) -> None:
        """Move the importances to a device."""
        self.importance = {name: one.to(device) for name, one in self.importance.items()}
