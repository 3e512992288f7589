"""Images of a task, read for a measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from avalanche_cetl.allocation.parameters import bare, device_of
from avalanche_cetl.common.picks import described
from avalanche_cetl.models.targets import reads_task_labels

#: The task labels whose heads a task has; empty for a network without heads by task.
Heads = tuple[int, ...]


class TaskSample(NamedTuple):
    """The rows of a task that a measurement of any network reads.

    :ivar images: ``(N, ...)``.
    :ivar labels: ``(N, ...)``, -1 where a class is unknown; None: there are none at all.
    :ivar tasks: task labels, ``(N,)``.
    """

    images: Tensor
    labels: Tensor | None
    tasks: Tensor


class Rows(NamedTuple):
    """The rows of a task, of which measurements draw and read some.

    :ivar length: how many there are.
    :ivar read: returns those of some numbers, on the device of the network.
    :ivar labels: of all rows, where they are known without reading the images.
    :ivar tasks: task labels of all rows, ``(N,)``, where these are known so.
    """

    length: int
    read: Callable[[list[int]], TaskSample]
    labels: Tensor | None = None
    tasks: Tensor | None = None


def rows_of(
    images: Tensor | Dataset[Any] | Rows,
    labels: Tensor | None,
    tasks: Tensor | Sequence[int] | None,
    model: nn.Module,
) -> Rows:
    """Return the rows of tensors, or of a data set.

    :param images: ``(N, ...)``; or a data set of images, or of tuples ``(image, label, ...)``; or
        rows already.
    :param labels: ``(N,)``; of a data set its own, where there are none here.
    :param tasks: task labels, ``(N,)``; None: those of a data set (``targets_task_labels``, or the
        third part of its items), or all are of one task, 0.
    :param model: the network, to whose device they are read. Images of double precision, as numpy
        has them, are read in the precision of a network that has no such parameters.
    :raises ValueError: when there are no images, another number of labels or tasks, or no tasks
        for a network with heads by task.
    :raises TypeError: for something else than images; later, when rows of a data set are no images
        and no such tuples.
    """
    if isinstance(images, Rows):
        return images
    if not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
        raise TypeError(
            f"images are {described(images)}; give a tensor (N, ...), or a map-style data set of "
            "images or of tuples (image, label, ...)."
        )
    device, by_head = device_of(model), reads_task_labels(bare(model))
    precision = _precision(model)
    if tasks is None and hasattr(images, "targets_task_labels"):
        tasks = list(images.targets_task_labels)
    labels, tasks = (None if one is None else torch.as_tensor(one) for one in (labels, tasks))
    count = len(images)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError("there are no images, so there is nothing to measure.")
    for name, one in (("labels", labels), ("tasks", tasks)):
        if one is not None and len(one) != count:
            raise ValueError(f"there are {count} images and {len(one)} {name}: give one for each.")

    def read(rows: list[int]) -> TaskSample:
        own = None if labels is None else labels[rows]
        task = None if tasks is None else tasks[rows]
        if isinstance(images, Tensor):
            found = images[rows]
        else:
            found = default_collate([images[row] for row in rows])
            if isinstance(found, tuple | list):
                own = found[1] if own is None and len(found) > 1 else own
                task = found[2] if task is None and by_head and len(found) > 2 else task
                found = found[0]
        if not isinstance(found, Tensor):
            raise TypeError(
                f"a batch of the data set gives {described(found)} for the images; give a data set "
                "of tensors, or of tuples (image, label, ...)."
            )
        found = found.to(precision) if found.dtype == torch.float64 else found
        if task is None and by_head:
            raise ValueError(
                f"{type(model).__name__} has a head for each task, and it is not known of which "
                "task the images are: give tasks=, one number for each image."
            )
        task = torch.zeros(len(rows), dtype=torch.int64) if task is None else task
        return TaskSample(
            found.to(device), None if own is None else own.to(device), task.to(device)
        )

    return Rows(count, read, labels, tasks)


def _precision(model: nn.Module) -> torch.dtype:
    """Return the type in which a network reads images of double precision."""
    types = [p.dtype for p in model.parameters() if p.dtype.is_floating_point]
    return types[0] if types and torch.float64 not in types else torch.float64


def in_turn(old: Heads, tasks: Tensor) -> Tensor:
    """Return the task whose head each image takes for an old task: its heads in turn.

    :param old: the task labels of the old task; empty for a network without heads by task.
    :param tasks: of the images, ``(N,)``.
    """
    if not old:
        return tasks
    return tasks.new_tensor(old)[torch.arange(len(tasks), device=tasks.device) % len(old)]
