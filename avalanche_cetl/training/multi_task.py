"""The coupled network whose target has heads by task: the one network that is Avalanche's own."""

from __future__ import annotations

from avalanche.models import MultiTaskModule
from torch import Tensor

from avalanche_cetl.models.coupled import CoupledModel


class MultiTaskCoupledModel(CoupledModel, MultiTaskModule, takes_task_labels=True):
    """The coupled network whose T2 has heads by task: its forward pass reads task labels.

    To Avalanche it is a ``MultiTaskModule``: heads grow with the tasks of the stream, training
    and evaluation pick each image's own. S and T1 are shared by all tasks.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, task_labels: Tensor | None
    ) -> Tensor:
        """Return T2's class logits ``(N, K)``, each image's from the head of its task.

        :param x: images ``(N, C, H, W)``.
        :param task_labels: ``(N,)``; None: a dict of every known task's logits.
        """
        result: Tensor = self.target(x, task_labels)
        return result
