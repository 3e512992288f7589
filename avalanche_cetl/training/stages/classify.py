"""Stage 3: T2 learns to classify, in Avalanche's ordinary training iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.core import BasePlugin
from torch import Tensor, nn

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.stages.base import Callbacks, Payment, TrainingStage


class LabelledRows(nn.Module):
    """A criterion that leaves unlabelled rows (label -1) out of the mean.

    Plugins hand whole data sets to ``strategy._criterion`` (EWC's importances do), so the
    data rule has to hold there too. Without any labelled row the loss is 0.

    :param criterion: ``(outputs, labels) -> scalar``.
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.criterion = criterion

    @classmethod
    def of(cls, criterion: Callable[[Tensor, Tensor], Tensor] | None) -> Any:
        """Return a criterion that reads labelled rows alone; None stands for cross entropy.

        Criteria that are Avalanche plugins see to it themselves.
        """
        if isinstance(criterion, BasePlugin):
            return criterion
        return cls(nn.CrossEntropyLoss() if criterion is None else criterion)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the criterion over the labelled rows."""
        if labels.is_floating_point() or bool((labels >= 0).all()):
            return self.criterion(outputs, labels)
        known = labels >= 0
        if not known.any():
            return outputs.sum() * 0
        return self.criterion(outputs[known], labels[known])


class ClassifyStage(TrainingStage):
    """Stage 3: L_c, the criterion of T2's logits and the labels (eq. 4)."""

    kind = Stage.CLASSIFY
    reads = "labelled"
    trains = None
    names = ("L_c",)
    pays = Payment("GFI3", "DWA3")
    callbacks = Callbacks.ALL

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return L_c."""
        return {"L_c": networks.criterion(batch.logits, batch.labels)}
