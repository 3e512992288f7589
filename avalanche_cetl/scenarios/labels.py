"""Labels as class indices, and the choice of the rows that keep theirs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_cetl.common.labels import UNLABELLED


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


def named_class(label: int, classes: Sequence[str] | None) -> str:
    """Return a class as errors write it: ``'dog' (1)``, or ``1`` where its name is not known."""
    known = classes is not None and 0 <= label < len(classes)
    return f"{classes[label]!r} ({label})" if classes is not None and known else str(label)


def named_classes(labels: Iterable[int], classes: Sequence[str] | None) -> str:
    """Return classes as errors write them, in brackets and in order of their numbers."""
    return f"[{', '.join(named_class(label, classes) for label in sorted(labels))}]"


def check_kept(labels_per_class: Any, labelled_fraction: Any = None, least: int = 0) -> None:
    """Check the arguments that say how many rows of each class keep their label.

    :param labels_per_class: a whole number, or None.
    :param labelled_fraction: a number in (0, 1], or None.
    :param least: of ``labels_per_class``.
    :raises TypeError: for other kinds of values, such as a dict by class.
    :raises ValueError: when both are given, or one is out of range.
    """
    count, share = _number(labels_per_class, operator.index), _number(labelled_fraction, float)
    if labels_per_class is not None and count is None:
        raise TypeError(
            f"labels_per_class={labels_per_class!r} is a {type(labels_per_class).__name__}; it has "
            "to be one whole number, which is the same for all classes. In transfer_benchmark and "
            "distillation_benchmark a share of each class is labelled_fraction=, and a training "
            "row whose label is -1 has none."
        )
    if count is not None and count < least:
        told = ": it leaves no label to learn the classes from" if least else ""
        raise ValueError(f"labels_per_class={count} has to be >= {least}{told}.")
    if labelled_fraction is not None and share is None:
        raise TypeError(
            f"labelled_fraction={labelled_fraction!r} is a {type(labelled_fraction).__name__}; it "
            "has to be one number in (0, 1], which is the same for all classes."
        )
    if share is not None and not 0 < share <= 1:
        raise ValueError(f"labelled_fraction={labelled_fraction} is outside (0, 1].")
    if labels_per_class is not None and labelled_fraction is not None:
        raise ValueError("give labels_per_class or labelled_fraction, not both.")


def _number(value: Any, kind: Callable[[Any], Any]) -> Any:
    """Return a value as a number of a kind; None where it is no such number, or None."""
    if isinstance(value, bool | str | bytes):
        return None
    try:
        return kind(value)
    except (TypeError, ValueError, RuntimeError):  # torch raises the last two
        return None


def choose_labelled(
    targets: Sequence[int],
    labels_per_class: int | None,
    labelled_fraction: float | None,
    seed: int,
    classes: Sequence[str] | None = None,
) -> list[int]:
    """Return the rows that keep their label, chosen class by class among those that have one.

    :param targets: N class indices, -1 for unlabelled.
    :param labels_per_class: exactly so many of each class, >= 0; or
    :param labelled_fraction: this share of each class, in (0, 1], rounded, at least one.
        Neither: all rows. Both are as :func:`check_kept` allows.
    :param seed: the same seed chooses the same rows.
    :param classes: names of the classes, for the error.
    :return: sorted indices.
    :raises ValueError: when a class has too few rows.
    """
    if labels_per_class is None and labelled_fraction is None:
        return [i for i, label in enumerate(targets) if label != UNLABELLED]
    labels = torch.tensor(list(targets))
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for label in labels[labels != UNLABELLED].unique().tolist():
        rows = (labels == label).nonzero().flatten()
        if labels_per_class is not None:
            count = operator.index(labels_per_class)
        else:
            assert labelled_fraction is not None
            count = max(1, round(labelled_fraction * len(rows)))
        if count > len(rows):
            raise ValueError(
                f"class {named_class(label, classes)} has {len(rows)} rows with a label, fewer "
                f"than {count}: labels_per_class may be {len(rows)} at most."
            )
        chosen += rows[torch.randperm(len(rows), generator=generator)[:count]].tolist()
    return sorted(chosen)
