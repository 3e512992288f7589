"""Parts: the mini-batches that one step of the optimiser is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from avalanche_cetl.training.batch import Batch


class Part(NamedTuple):
    """A mini-batch's place among those that one step is made of.

    :ivar weight: its rows, of all processes, over the rows of all of them.
    """

    first: bool = True
    last: bool = True
    weight: float = 1.0


WHOLE = Part()


def parts(batches: Iterable[Batch], together: int) -> Iterator[tuple[Batch, Part]]:
    """Yield the batches of one pass, ``together`` of them to a step.

    What is left at the end of the pass makes a step of its own.
    """
    if together == 1:
        for batch in batches:
            yield batch, WHOLE
        return
    left = iter(batches)
    while group := list(islice(left, together)):
        rows = [batch.rows for batch in group]
        for i, batch in enumerate(group):
            yield batch, Part(i == 0, i == len(group) - 1, rows[i] / sum(rows))
