"""The loop of methods that read two domains at once: pairs of source and target mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.methods.job import AdaptationJob


def pairs(
    job: AdaptationJob, seen: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield one epoch: views of source images, their labels, and views of target images.

    Rows are shuffled; the shorter set starts again until the longer has been seen once.

    :param seen: random views; None: the job's.
    """
    seen = seen or job.augment
    (x, y), z, batch = job.pair.source, job.pair.target, job.budget.batch
    rows = max(len(x), len(z))
    orders = [_repeated(len(part), rows) for part in (x, z)]
    for start in range(0, rows - 1, batch):  # no batch of one: BatchNorm and kernels need two
        a, b = (order[start : start + batch] for order in orders)
        yield seen(x[a]), y[a], seen(z[b])


def _repeated(count: int, rows: int) -> Tensor:
    times = -(-rows // count)
    return torch.cat([torch.randperm(count) for _ in range(times)])[:rows]


def epochs_of(count: int, *optimizers: torch.optim.Optimizer) -> Iterator[int]:
    """Count epochs while the learning rates fall to zero by half a cosine, epoch by epoch."""
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, max(1, count)) for o in optimizers]
    for epoch in range(count):
        yield epoch
        for schedule in schedules:
            schedule.step()
