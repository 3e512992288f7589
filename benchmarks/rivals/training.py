"""The loop that the rivals share: pairs of source and target mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Images = tuple[Tensor, Tensor]
Augment = Callable[[Tensor], Tensor]


def pairs(
    source: Images, target: Tensor, batch: int, augment: Augment
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch: source images and labels beside target images, for as long as both last.

    Rows are shuffled; the shorter set starts again until the longer has been seen once.

    :param source: images ``(N, C, H, W)`` and labels ``(N,)``.
    :param target: images ``(M, C, H, W)``.
    :param augment: applied to every mini-batch of images.
    """
    rows = max(len(source[0]), len(target))
    orders = [_repeated(len(part), rows) for part in (source[0], target)]
    for start in range(0, rows - 1, batch):  # no batch of one: BatchNorm and kernels need two
        a, b = (order[start : start + batch] for order in orders)
        yield augment(source[0][a]), source[1][a], augment(target[b])


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


@torch.no_grad()
def predictions(network: nn.Module, images: Tensor, batch: int = 500) -> Tensor:
    """Give class indices of images, in eval mode, on the CPU."""
    training = network.training
    network.eval()
    found = torch.cat([network(part).argmax(1).cpu() for part in images.split(batch)])
    network.train(training)
    return found
