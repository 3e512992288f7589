"""Dynamic Weight Allocation: when GFI1 to GFI3 are measured, and the penalties they hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from avalanche_cetl.information.processes import Processes
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.importance import PAIRS, Importance, Sample, measure
from avalanche_cetl.training.settings import GFISettings, Plan


class Allocation:
    """The importances of Algorithm 1 and the penalties made of them (eqs. 10, 11).

    :param plan: of the variant: which kind of importance, if any.
    :param settings: how it is measured.
    :param strength: lambda of eq. 11; 0: nothing is measured.
    :ivar importance: the latest GFI1 to GFI3, by name.
    """

    def __init__(self, plan: Plan, settings: GFISettings, strength: float):
        self.plan, self.settings, self.strength = plan, settings, strength
        self.importance: dict[str, Importance] = {}
        self._generator = torch.Generator().manual_seed(settings.seed)

    def penalty(self, name: str, model: CoupledModel) -> Tensor | None:
        """DWA with the latest importance of that name; None before there is one."""
        if name not in self.importance:
            return None
        return self.importance[name].penalty(model, self.strength)

    def refresh(
        self,
        names: tuple[str, ...],
        model: CoupledModel,
        epoch: int,
        rows: int,
        read: Callable[[list[int]], tuple[Sample, Tensor]],
        processes: Processes | None = None,
    ) -> None:
        """Measure importances at the weights as they are now, theta*, where they are due.

        :param epoch: rounds done in this experience.
        :param rows: number of target rows.
        :param read: gives target rows, without training augmentation, and their task labels.
        :param processes: that share the measurement.
        """
        if self.plan.importance is None or self.strength == 0:
            return
        known = all(name in self.importance for name in names)
        if known and epoch % self.settings.refresh_every != 0:
            return
        if model.source is None:
            # Without S there is no L_rs: T1 has one task only, and nothing to allocate.
            names = tuple(name for name in names if name == "GFI3")
        for name in names:
            drawn = torch.randperm(rows, generator=self._generator)[: self.settings.samples]
            sample, tasks = read(drawn.tolist())
            self.importance[name] = measure(
                model,
                PAIRS[name],
                sample,
                self.settings,
                self.plan.importance,
                self._generator,
                processes,
                tasks,
            )
