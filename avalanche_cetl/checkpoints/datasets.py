"""Data sets that plugins keep, such as replay buffers, as plain data and back.

Rows that always read the same are kept as they read. A row that passes through random transforms,
or is no tensor, is kept as the index where it lies: in which of the innermost data sets, and which
row of it. Loading then needs the training data, and checks them by a digest of what the rows hold
before any transform of Avalanche's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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

from avalanche_cetl.checkpoints.codec import CheckpointError, equal, is_plain
from avalanche_cetl.checkpoints.parts import load_random_states, random_states

_CLASSES = {
    kind.__name__: kind
    for kind in (
        AvalancheDataset,
        ClassificationDataset,
        TaskAwareClassificationDataset,
        TaskAwareSupervisedClassificationDataset,
    )
}


def dataset_state(dataset: AvalancheDataset, where: str) -> dict[str, Any]:
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
    items = _lasting_items(dataset)
    return {
        "type": type(dataset).__name__,
        "count": len(dataset),
        "group": dataset._flat_data._transform_groups.current_group,
        "attributes": attributes,
        **({"places": indices_of(dataset)} if items is None else {"items": items}),
    }


def dataset_from(state: Mapping[str, Any], experiences: Sequence[Any] | None, where: str) -> Any:
    """Return the data set again.

    :param state: as :func:`dataset_state` returned it.
    :param experiences: of the benchmark; None where the caller gave none.
    :param where: the data set's name, for messages.
    :raises CheckpointError: without experiences where they are needed, or where these do not
        hold the rows.
    """
    kind = _CLASSES.get(state["type"])
    if kind is None:
        raise CheckpointError(f"{where} is of the class {str(state['type'])[:60]} in the file.")
    attributes = [_attribute(one) for one in state["attributes"]]
    if "items" in state:
        columns = [_values(column) for column in state["items"]]
        lengths = {len(column) for column in columns} or {0}
        if lengths != {state["count"]}:
            raise CheckpointError("a data set in the checkpoint has columns of other lengths.")
        rows = list(zip(*columns, strict=True))
        found = kind([rows] if rows else [], data_attributes=attributes)
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
    if type(found) is not kind:
        raise CheckpointError(f"{where} is of the class {kind.__name__} in the checkpoint.")
    return found.with_transforms(str(state["group"]))


# ------------------------------------------------------------------ rows as they read


def _lasting_items(dataset: AvalancheDataset) -> list[dict[str, Any]] | None:
    """Return all rows as columns, where reading them again gives the same in every mode."""
    if len(dataset) == 0:
        return []
    if dataset.collate_fn is not default_collate:
        return None
    before = random_states()
    rows = _items(dataset.train())
    lasting = equal(before, random_states())
    lasting = lasting and all(equal(rows, _items(d)) for d in (dataset.train(), dataset.eval()))
    load_random_states(before)
    if not lasting or len({len(row) for row in rows}) != 1:
        return None
    columns = [_column(list(values)) for values in zip(*rows, strict=True)]
    return None if None in columns else columns  # type: ignore[return-value]


def _items(dataset: AvalancheDataset) -> list[tuple[Any, ...]]:
    """Read all rows, without the data attributes that stand at the end of each."""
    added = sum(a.use_in_getitem for a in dataset._data_attributes.values())
    rows = [dataset[row] for row in range(len(dataset))]
    return [tuple(row[: len(row) - added]) if isinstance(row, list | tuple) else () for row in rows]


def _column(values: list[Any]) -> dict[str, Any] | None:
    """Return values of one kind as one tensor where that is possible; None if they are no data."""
    if not is_plain(values):
        return None
    first = values[0] if values else None
    if isinstance(first, Tensor) and all(
        isinstance(v, Tensor) and v.shape == first.shape and v.dtype == first.dtype for v in values
    ):
        return {"of": "tensors", "values": torch.stack([v.detach() for v in values])}
    if isinstance(first, np.generic) and all(type(v) is type(first) for v in values):
        return {"of": "values", "values": np.asarray(values)}
    return {"of": "values", "values": values}


def _values(column: Mapping[str, Any]) -> Sequence[Any]:
    values = column["values"]
    if not isinstance(values, Tensor | np.ndarray | list):
        raise CheckpointError("a data set in the checkpoint has a column that is no list.")
    return list(values) if column["of"] == "tensors" else values  # type: ignore[return-value]


def _attribute(state: Mapping[str, Any]) -> DataAttribute[Any]:
    values = _values(state["values"])
    if state["constant"] and len(values):
        values = ConstantSequence(values[0], len(values))
    if state["name"] == "targets_task_labels":
        return TaskLabels(values)
    return DataAttribute(values, str(state["name"]), use_in_getitem=bool(state["in_items"]))


# ------------------------------------------------------------------ rows by their indices


def indices_of(dataset: AvalancheDataset) -> dict[str, Any]:
    """Return where the rows lie: in which of the innermost data sets, and which row of it."""
    rows_of: dict[int, list[int]] = {}
    leaves, where = {}, list(_walk(dataset))
    for leaf, row in where:
        leaves[id(leaf)] = leaf
        rows_of.setdefault(id(leaf), []).append(row)
    numbers = {key: number for number, key in enumerate(leaves)}
    return {
        "leaves": [
            {"rows": len(leaf), "digest": _digest(leaf, rows_of[key])}
            for key, leaf in leaves.items()
        ],
        "leaf": torch.tensor([numbers[id(leaf)] for leaf, _ in where], dtype=torch.int64),
        "row": torch.tensor([row for _, row in where], dtype=torch.int64),
    }


def rows_at(indices: Mapping[str, Any], datasets: list[Any], where: str) -> AvalancheDataset[Any]:
    """Return the rows that lie at these indices of data sets, as one data set.

    :param indices: as :func:`indices_of` returned them.
    :param datasets: that hold the rows now.
    :param where: the name of the rows, for messages.
    :raises CheckpointError: when the data sets do not hold the rows.
    """
    positions: dict[tuple[int, int], int] = {}
    leaves = {}
    rows_now = (pair for dataset in datasets for pair in _walk(dataset))
    for position, (leaf, row) in enumerate(rows_now):
        leaves[id(leaf)] = leaf
        positions.setdefault((id(leaf), row), position)
    wanted = list(zip(indices["leaf"].tolist(), indices["row"].tolist(), strict=True))
    keys = []
    for number, described in enumerate(indices["leaves"]):
        rows, digest = [row for n, row in wanted if n == number], described["digest"]
        fitting = [
            key
            for key, leaf in leaves.items()
            if len(leaf) == described["rows"] and all((key, row) in positions for row in rows)
        ]
        if digest is not None:
            fitting = [key for key in fitting if _digest(leaves[key], rows) == digest][:1]
        if len(fitting) != 1:
            raise CheckpointError(
                f"{where} holds rows of a data set of {described['rows']} rows, and "
                f"{len(fitting) or 'none'} of those in experiences= can be it: give the training "
                "stream of the run that is to go on."
            )
        keys += fitting
    return concat_datasets(datasets).subset([positions[(keys[n], row)] for n, row in wanted])


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
    before, digest = random_states(), hashlib.sha256()
    lasting = all(_feed(digest, leaf[row]) for row in rows) and equal(before, random_states())
    load_random_states(before)
    return digest.hexdigest() if lasting else None


def _feed(digest: Any, value: Any) -> bool:
    """Feed what a value holds to a digest; False where that cannot be told."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        return all(_feed(digest, part) for part in value)
    if hasattr(value, "tobytes"):  # an array, or an image of PIL
        digest.update(repr((getattr(value, "shape", None), getattr(value, "size", None))).encode())
        digest.update(value.tobytes())
        return True
    if value is None or isinstance(value, bool | int | float | str):
        digest.update(repr(value).encode())
        return True
    return False
