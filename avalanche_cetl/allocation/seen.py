"""Which classes have come so far: outputs of classes that have not count less."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from avalanche_cetl.allocation.sample import Rows, TaskSample
from avalanche_cetl.information.generalized import check_unit_interval

#: A class and the task label of its head; 0 for a network without heads by task.
HeadClass = tuple[int, int]


class SeenClasses:
    """The classes that have had a label, by head.

    :param unseen: weight of the other classes' outputs, in [0, 1]; those that were seen have 1.
    :ivar by_head: numbers of the classes, by the task label of their head, in order.
    """

    def __init__(self, unseen: float):
        check_unit_interval("unseen", unseen)
        self.unseen = unseen
        self.by_head: dict[int, list[int]] = {}

    def add(self, classes: Iterable[HeadClass]) -> None:
        """Take in classes that have come."""
        for head, label in classes:
            known = self.by_head.setdefault(head, [])
            if label not in known:
                known.append(label)
                known.sort()

    def weights(self, head: int, units: int) -> Tensor | None:
        """Return the weights of a head's outputs, ``(units,)``; None where no class has come."""
        seen = [label for label in self.by_head.get(head, []) if label < units]
        if not seen:
            return None
        found = torch.full((units,), float(self.unseen), dtype=torch.float64)
        found[seen] = 1.0
        return found


def classes_of(rows: Rows, sample: TaskSample, by_head: bool) -> set[HeadClass]:
    """Return the classes of a task.

    :param rows: of the task; its labels count where they are known.
    :param sample: some of them. Where it has classes that ``rows`` has not, as where a data set
        changes labels on the way, its own alone count.
    :param by_head: whether the network has heads by task.
    """
    drawn = _pairs(sample.labels, sample.tasks, by_head)
    known = _pairs(rows.labels, rows.tasks, by_head)
    return known if drawn <= known else drawn


def _pairs(labels: Tensor | None, tasks: Tensor | None, by_head: bool) -> set[HeadClass]:
    """Return every head with its classes; labels below 0 are unknown, real numbers are none.

    Labels may be numbers ``(N,)`` or ``(N, 1)``, or rows ``(N, K)`` of shares, as one-hot ones are:
    then a class counts where any row has a share of it.
    """
    if labels is None or labels.dtype == torch.bool or labels.dim() not in (1, 2):
        return set()
    heads = torch.zeros(len(labels), dtype=torch.int64) if tasks is None or not by_head else tasks
    heads, plain = heads.to(labels.device), labels
    if plain.dim() == 2 and plain.shape[1] > 1:
        rows, plain = (plain > 0).nonzero(as_tuple=True)
        heads = heads[rows]
    plain = plain.flatten()
    if plain.is_floating_point() and not bool((plain == plain.round()).all()):
        return set()
    found = torch.stack([heads.long(), plain.long()], 1)[plain >= 0].unique(dim=0).tolist()
    return {(head, label) for head, label in found}
