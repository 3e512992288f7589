"""Images of an experience, read for a measurement."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """The rows that a measurement reads.

    :ivar images: ``(N, ...)``.
    :ivar labels: ``(N,)``, -1 where there is none.
    :ivar tasks: task labels, ``(N,)``.
    :ivar features: S's ``(N, dim)``; None where they are not stored.
    """

    images: Tensor
    labels: Tensor
    tasks: Tensor
    features: Tensor | None = None


def read_sample(strategy: Any, rows: list[int]) -> Sample:
    """Read rows of the experience without training augmentation, on the strategy's device."""
    dataset = strategy.experience.dataset
    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset
    batch = dataset.collate_fn([dataset[i] for i in rows])
    tasks = torch.as_tensor(batch[-1])
    return Sample(*(part.to(strategy.device) for part in (batch[0], batch[1], tasks)))


def in_turn(old: tuple[int, ...], tasks: Tensor) -> Tensor:
    """Return the task whose head each image takes for an old experience: its heads in turn.

    :param old: the old experience's tasks; empty for a network without heads by task.
    :param tasks: of the images, ``(N,)``.
    """
    if not old:
        return tasks
    return tasks.new_tensor(old)[torch.arange(len(tasks), device=tasks.device) % len(old)]
