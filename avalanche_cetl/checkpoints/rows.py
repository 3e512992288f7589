"""Data sets that plugins keep, such as replay buffers, as plain data and back.

Rows that always read the same are kept as they read. Rows that pass through random transforms,
or are no tensors, are kept as places in the data that training had: see
:mod:`~avalanche_cetl.checkpoints.places`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor
from torch.utils.data import default_collate

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.places import places_of, rows_at
from avalanche_cetl.checkpoints.plain import equal, is_plain
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

    :param dataset: whose rows it is about.
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
    return state | {"places": places_of(dataset)}


def rows_from(state: Mapping[str, Any], experiences: Iterable[Any] | None, where: str) -> Any:
    """Return the data set again.

    :param state: as :func:`rows_state` returned it.
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
    found = rows_at(state["places"], [experience.dataset for experience in experiences], where)
    for attribute in attributes:
        known = getattr(found, attribute.name, None)
        if known is None or not equal(list(known), list(attribute)):
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
    drew = not equal(before, random_states())
    lasting = not drew and equal(first, _items(dataset.train()), _items(dataset.eval()))
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
