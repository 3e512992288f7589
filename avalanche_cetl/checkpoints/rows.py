"""Data sets that plugins keep, such as replay buffers, as plain data and back.

Rows that always read the same are kept as they read. Rows that pass through random transforms,
or are no tensors, are kept as places in the data that training had: loading then needs these
data, and finds a row by its place and by a digest of what it holds before any transform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.classification_dataset import (
    ClassificationDataset,
    TaskAwareClassificationDataset,
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence, FlatData
from avalanche.benchmarks.utils.utils import concat_datasets
from torch import Tensor
from torch.utils.data import default_collate

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.plain import is_plain
from avalanche_cetl.checkpoints.random import random_states, set_random_states

_CLASSES = {
    kind.__name__: kind
    for kind in (
        AvalancheDataset,
        ClassificationDataset,
        TaskAwareClassificationDataset,
        TaskAwareSupervisedClassificationDataset,
    )
}
Columns = list[dict[str, Any]]


def rows_state(dataset: AvalancheDataset, where: str) -> dict[str, Any]:
    """Return a data set as plain data.

    :param where: its name, for messages.
    :raises CheckpointError: for a class or an attribute that cannot be made again.
    """
    if _CLASSES.get(type(dataset).__name__) is not type(dataset):
        raise CheckpointError(
            f"{where} is a {type(dataset).__name__}, and a checkpoint keeps only the data sets of "
            f"Avalanche's own classes {sorted(_CLASSES)}."
        )
    attributes = []
    for attribute in dataset._data_attributes.values():
        column = _column(list(attribute))
        if column is None:
            raise CheckpointError(
                f"{where} has the data attribute {attribute.name!r}, whose values are neither "
                "numbers nor tensors, and a checkpoint does not keep them."
            )
        attributes.append(
            {
                "name": attribute.name,
                "in_items": attribute.use_in_getitem,
                "constant": isinstance(attribute.data, ConstantSequence),
                "values": column,
            }
        )
    state = {
        "type": type(dataset).__name__,
        "count": len(dataset),
        "group": dataset._flat_data._transform_groups.current_group,
        "attributes": attributes,
    }
    items = _lasting_items(dataset)
    if items is not None:
        return state | {"items": items}
    return state | {"places": _places(dataset)}


def rows_from(state: Mapping[str, Any], experiences: Iterable[Any] | None, where: str) -> Any:
    """Return the data set again.

    :param experiences: of the benchmark; None where the caller gave none.
    :param where: the data set's name, for messages.
    :raises CheckpointError: without experiences where they are needed, or where these do not
        hold the rows.
    """
    made = _CLASSES.get(state["type"])
    if made is None:
        raise CheckpointError(f"{where} is of the class {str(state['type'])[:60]} in the file.")
    attributes = [_attribute(one) for one in state["attributes"]]
    if "items" in state:
        kept = _Kept(state["count"], state["items"])
        found = made([kept] if len(kept) else [], data_attributes=attributes)
        return found.with_transforms(str(state["group"]))
    if experiences is None:
        raise CheckpointError(
            f"{where} holds rows that pass through random transforms, or that are no tensors; the "
            "checkpoint says only which ones. Give the training data: load_checkpoint(strategy, "
            "path, experiences=benchmark.train_stream)."
        )
    found = _found(state, [experience.dataset for experience in experiences], where)
    for attribute in attributes:
        known = getattr(found, attribute.name, None)
        if known is None or not _equal(list(known), list(attribute)):
            found = found.update_data_attribute(attribute.name, attribute)
    if type(found) is not made:
        raise CheckpointError(f"{where} is of the class {made.__name__} in the checkpoint.")
    return found.with_transforms(str(state["group"]))


def _attribute(state: Mapping[str, Any]) -> DataAttribute[Any]:
    values = _values(state["values"])
    if state["constant"] and len(values):
        values = ConstantSequence(values[0], len(values))
    if state["name"] == "targets_task_labels":
        return TaskLabels(values)
    return DataAttribute(values, str(state["name"]), use_in_getitem=bool(state["in_items"]))


# ------------------------------------------------------------------ rows that stay the same


class _Kept(Sequence[tuple[Any, ...]]):
    """Rows from a checkpoint.

    :param count: of rows.
    :param columns: the first, second, ... part of every row.
    """

    def __init__(self, count: int, columns: Columns):
        self._columns = [_values(column) for column in columns]
        if any(len(column) != count for column in self._columns) or (count and not columns):
            raise CheckpointError("a data set in the checkpoint has columns of other lengths.")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        return tuple(column[row] for column in self._columns)


def _lasting_items(dataset: AvalancheDataset) -> Columns | None:
    """Return all rows as columns, where reading them again gives the same in every mode."""
    if len(dataset) == 0:
        return []
    if dataset.collate_fn is not default_collate:
        return None
    before = random_states()
    first = _items(dataset.train())
    drew = not _equal(before, random_states())
    lasting = not drew and _equal(first, _items(dataset.train()), _items(dataset.eval()))
    set_random_states(before)
    if not lasting or len({len(item) for item in first}) != 1:
        return None
    columns = [_column(list(values)) for values in zip(*first, strict=True)]
    return [c for c in columns if c is not None] if None not in columns else None


def _items(dataset: AvalancheDataset) -> list[tuple[Any, ...]]:
    """Read all rows, without the data attributes that stand at the end of each."""
    added = sum(a.use_in_getitem for a in dataset._data_attributes.values())
    rows = [dataset[row] for row in range(len(dataset))]
    return [tuple(row[: len(row) - added]) if isinstance(row, list | tuple) else () for row in rows]


def _column(values: list[Any]) -> dict[str, Any] | None:
    """Return values of one kind as one tensor where that is possible; None if they are no data."""
    first = values[0] if values else None
    if isinstance(first, Tensor):
        alike = all(
            isinstance(v, Tensor) and v.shape == first.shape and v.dtype == first.dtype
            for v in values
        )
        if alike:
            return {"of": "tensors", "values": torch.stack([v.detach() for v in values])}
    if isinstance(first, np.generic) and all(type(v) is type(first) for v in values):
        return {"of": "values", "values": np.asarray(values)} if is_plain(first) else None
    return {"of": "values", "values": values} if is_plain(values) else None


def _values(column: Mapping[str, Any]) -> Sequence[Any]:
    values = column["values"]
    if not isinstance(values, Tensor | np.ndarray | list):
        raise CheckpointError("a data set in the checkpoint has a column that is no list.")
    return list(values) if column["of"] == "tensors" else values  # type: ignore[return-value]


def _equal(first: Any, *others: Any) -> bool:
    return all(_same(first, other) for other in others)


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and bool(torch.eq(a, b).all() or _bits(a, b))
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b) or (a != a and b != b)


def _bits(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())


# ------------------------------------------------------------------ rows by place


def _places(dataset: AvalancheDataset) -> dict[str, Any]:
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
    """Give the innermost data set of every row, and the row's number in it."""
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
    drew = not _equal(before, random_states())
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


def _found(state: Mapping[str, Any], datasets: list[Any], where: str) -> AvalancheDataset[Any]:
    """Find the rows of a state among data sets."""
    places = state["places"]
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
    """Find the one innermost data set that has these rows."""
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
