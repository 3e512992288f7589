"""Rows of a data set as places in the data that training had.

A row that passes through random transforms, or is no tensor, is not kept itself, but the place
where it lies: in which of the innermost data sets, and which row of it. Loading then needs these
data, and checks them by a digest of what the rows hold before any transform of Avalanche's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.utils import concat_datasets
from torch import Tensor

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.plain import equal
from avalanche_cetl.checkpoints.random import random_states, set_random_states


def places_of(dataset: AvalancheDataset) -> dict[str, Any]:
    """Return where the rows lie: in which of the innermost data sets, and which row of it."""
    leaves: dict[int, tuple[Any, list[int]]] = {}
    numbers: dict[int, int] = {}
    where = []
    for leaf, row in _walk(dataset):
        numbers.setdefault(id(leaf), len(numbers))
        leaves.setdefault(id(leaf), (leaf, []))[1].append(row)
        where.append((numbers[id(leaf)], row))
    return {
        "leaves": [
            {"rows": len(leaf), "digest": _digest(leaf, rows)} for leaf, rows in leaves.values()
        ],
        "leaf": torch.tensor([number for number, _ in where], dtype=torch.int64),
        "row": torch.tensor([row for _, row in where], dtype=torch.int64),
    }


def _walk(dataset: AvalancheDataset) -> Iterator[tuple[Any, int]]:
    """Yield the innermost data set of every row, and the row's number in it."""
    for position in range(len(dataset)):
        part, row = dataset._flat_data, position
        while isinstance(part, FlatData):
            number, row = part._get_idx(row)
            part = part._datasets[number]
        yield part, int(row)


def _digest(leaf: Any, rows: Sequence[int]) -> str | None:
    """Return a digest of rows before any transform of Avalanche's; None where they vary."""
    before = random_states()
    found = hashlib.sha256()
    lasting = all(_feed(found, leaf[row]) for row in rows)
    drew = not equal(before, random_states())
    set_random_states(before)
    return found.hexdigest() if lasting and not drew else None


def _feed(digest: Any, value: Any) -> bool:
    """Feed what a value holds to a digest; False where that cannot be told."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        return all(_feed(digest, part) for part in value)
    if isinstance(value, np.ndarray) or hasattr(value, "tobytes"):
        digest.update(repr((getattr(value, "shape", None), getattr(value, "size", None))).encode())
        digest.update(value.tobytes())
        return True
    if value is None or isinstance(value, bool | int | float | str):
        digest.update(repr(value).encode())
        return True
    return False


def rows_at(places: Mapping[str, Any], datasets: list[Any], where: str) -> AvalancheDataset[Any]:
    """Return the rows that lie at these places of data sets, as one data set.

    :param places: as they were kept of the rows.
    :param datasets: that hold the rows now.
    :param where: its name, for messages.
    :raises CheckpointError: when the data sets do not hold the rows.
    """
    positions: dict[tuple[int, int], int] = {}
    leaves: dict[int, Any] = {}
    position = 0
    for dataset in datasets:
        for leaf, row in _walk(dataset):
            leaves[id(leaf)] = leaf
            positions.setdefault((id(leaf), row), position)
            position += 1
    numbers, rows = places["leaf"].tolist(), places["row"].tolist()
    found = []
    for number, described in enumerate(places["leaves"]):
        mine = [row for n, row in zip(numbers, rows, strict=True) if n == number]
        found.append(_leaf(described, mine, leaves, positions, where))
    chosen = [positions[(found[n], row)] for n, row in zip(numbers, rows, strict=True)]
    return concat_datasets(datasets).subset(chosen)


def _leaf(
    described: Mapping[str, Any],
    rows: list[int],
    leaves: dict[int, Any],
    positions: dict[tuple[int, int], int],
    where: str,
) -> int:
    """Return the key of the one innermost data set that has these rows."""
    fitting = [
        key
        for key, leaf in leaves.items()
        if len(leaf) == described["rows"] and all((key, row) in positions for row in rows)
    ]
    if described["digest"] is not None:
        fitting = [key for key in fitting if _digest(leaves[key], rows) == described["digest"]][:1]
    if len(fitting) != 1:
        raise CheckpointError(
            f"{where} holds rows of a data set of {described['rows']} rows, and "
            f"{len(fitting) or 'none'} of those in experiences= can be it: give the training "
            "stream of the run that is to go on."
        )
    return fitting[0]
