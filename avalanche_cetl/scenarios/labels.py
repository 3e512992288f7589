"""Labels as class indices, and the choice of the rows that keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_cetl.common.rows import UNLABELLED


def class_indices(labels: Any) -> list[int]:
    """Return the labels of a set as class indices.

    :param labels: N whole numbers from 0, -1 for unknown; a column ``(N, 1)`` of them is taken
        as such.
    :raises ValueError: for anything else, naming the row.
    """
    if hasattr(labels, "to_numpy"):  # pandas; a frame would give its columns' names
        labels = labels.to_numpy()
    shape = tuple(labels.shape) if isinstance(labels, Tensor | np.ndarray) else (len(labels),)
    if len(shape) == 2 and shape[1] == 1:
        labels = labels.reshape(-1)
    elif len(shape) != 1:
        raise ValueError(
            f"labels of shape {shape}, e.g. {_short(labels[0]) if shape else _short(labels)} in "
            "row 0, are no class indices; give one whole number a row, of one-hot rows "
            "labels.argmax(1)."
        )
    found = []
    for row, label in enumerate(labels):
        try:
            found.append(class_index(label))
        except ValueError as problem:
            raise ValueError(f"row {row}: {problem}") from problem
    return found


def class_index(label: Any) -> int:
    """Return a label as a class index; -1 stays.

    :param label: a whole number, or an array, tensor or list of one such.
    :raises ValueError: for anything else, with the remedy.
    """
    if isinstance(label, str | bytes):
        raise ValueError(
            f"the label {label!r} is a text; number the classes from 0, e.g. with "
            "numpy.unique(labels, return_inverse=True)."
        )
    values = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
    if values.size != 1:
        raise ValueError(
            f"the label {_short(label)} has {values.size} numbers; give one class index, of a "
            "one-hot row its argmax."
        )
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ValueError(
            f"the label {_short(label)} is no finite number; labels have to be class indices from "
            "0, and -1 where they are unknown."
        )
    value = values.item()
    if value != int(value) or value < UNLABELLED:
        raise ValueError(f"labels have to be class indices from 0 (-1: unknown), got {label!r}.")
    return int(value)


def _short(label: Any) -> str:
    text = " ".join(repr(label).split())
    return text if len(text) <= 60 else text[:57] + "..."


def choose_labelled(
    targets: Sequence[int],
    labels_per_class: int | None,
    labelled_fraction: float | None,
    seed: int,
) -> list[int]:
    """Return the rows that keep their label, chosen class by class among those that have one.

    :param labels_per_class: exactly so many of each class, >= 0; or
    :param labelled_fraction: this share of each class, in (0, 1], rounded, at least one.
        Neither: all rows.
    :param seed: the same seed chooses the same rows.
    :return: sorted indices.
    :raises ValueError: when both are given, one is out of range, or a class has too few rows.
    """
    if labels_per_class is not None and labelled_fraction is not None:
        raise ValueError("give labels_per_class or labelled_fraction, not both.")
    if labels_per_class is not None and labels_per_class < 0:
        raise ValueError(f"labels_per_class={labels_per_class} has to be >= 0.")
    if labelled_fraction is not None and not 0 < labelled_fraction <= 1:
        raise ValueError(f"labelled_fraction={labelled_fraction} is outside (0, 1].")
    if labels_per_class is None and labelled_fraction is None:
        return [i for i, label in enumerate(targets) if label != UNLABELLED]
    labels = torch.tensor(list(targets))
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for label in labels[labels != UNLABELLED].unique().tolist():
        rows = (labels == label).nonzero().flatten()
        if labels_per_class is not None:
            count = labels_per_class
        else:
            assert labelled_fraction is not None
            count = max(1, round(labelled_fraction * len(rows)))
        if count > len(rows):
            raise ValueError(f"class {label} has {len(rows)} rows, fewer than {count}.")
        chosen += rows[torch.randperm(len(rows), generator=generator)[:count]].tolist()
    return sorted(chosen)
