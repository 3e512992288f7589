"""Dynamic Weight Allocation: when GFI1 to GFI3 are measured, and the penalties they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from avalanche_cetl.allocation.measure import PAIRS, Importance, Sample, measure
from avalanche_cetl.allocation.settings import GFISettings
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
        if self.kind is None or self.strength == 0:
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
                self.kind,
                self._generator,
                processes,
                tasks,
            )
