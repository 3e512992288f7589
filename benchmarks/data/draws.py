"""Stratified draws: rows of every class in random order, by a seed.

The three functions below take from one order of rows (:func:`by_class`), so that a seed means the
same in all of them: the first rows of a class are those that a smaller draw has too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Images ``(N, C, H, W)`` and labels ``(N,)``.
Set = tuple[Tensor, Tensor]
#: Seed of draws that are the same for all runs.
DRAW_SEED = 0


def by_class(labels: Tensor, generator: torch.Generator) -> dict[int, Tensor]:
    """Return the rows of every class, each class in random order, smallest label first."""
    found = {}
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        found[label] = rows[torch.randperm(len(rows), generator=generator)]
    return found


def drawn_rows(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Draw the same number of rows of every class, shuffled; all rows of a class that has fewer."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([rows[:per_class] for rows in by_class(labels, generator).values()])
    return rows[torch.randperm(len(rows), generator=generator)]


def draw(data: Set, per_class: int, seed: int = DRAW_SEED) -> Set:
    """Draw the same number of images of every class, with their labels."""
    rows = drawn_rows(data[1], per_class, seed)
    return data[0][rows], data[1][rows]


def split_off(data: Set, per_class: int) -> tuple[Set, Set]:
    """Split a draw off: so many images of every class, and the rest in its own order."""
    rows = drawn_rows(data[1], per_class, DRAW_SEED)
    rest = torch.ones(len(data[1]), dtype=torch.bool)
    rest[rows] = False
    return (data[0][rows], data[1][rows]), (data[0][rest], data[1][rest])


def shared_rows(labels: Tensor, count: int, seed: int) -> list[int]:
    """Draw so many rows in all, each class by its share, in ascending order.

    The classes whose shares lose most by rounding down get one more.

    :param labels: 0 and up, ``(N,)``.
    """
    shares = torch.bincount(labels) * (count / len(labels))
    take = shares.floor().long()
    take[(shares - take).argsort(descending=True)[: count - int(take.sum())]] += 1
    rows = by_class(labels, torch.Generator().manual_seed(seed))
    return sorted(torch.cat([found[: take[label]] for label, found in rows.items()]).tolist())


def disjoint(data: Set, counts: Sequence[int], seed: int) -> list[Set]:
    """Draw parts that share no image, each with so many of every class, class by class.

    :param counts: images of a class, one number for each part; a class that has fewer than all of
        them gives every part the same share of what was asked for.
    """
    x, y = data
    parts: list[list[Tensor]] = [[] for _ in counts]
    for rows in by_class(y, torch.Generator().manual_seed(seed)).values():
        share, start = min(1.0, len(rows) / sum(counts)), 0
        for part, count in zip(parts, counts, strict=True):
            stop = start + int(count * share)
            part.append(rows[start:stop])
            start = stop
    return [(x[torch.cat(part)], y[torch.cat(part)].long()) for part in parts]
