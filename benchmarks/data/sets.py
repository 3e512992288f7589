"""Photographs for transfer and distillation: a draw, validation images and the test set.

Fixed before any test label was read: CIFAR-10-s is a stratified draw of CIFAR-10's training
images with seed 0, the same for all seeds, which vary initialisation, order and views; settings
are chosen on other training images; the test is the whole test set, read once, after the last
epoch. Pixels are standardised channel by channel. S reads the clean images once, enlarged; its
features come out of the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_cetl import (
    Encoder,
    mixed_images,
    paper_benchmark,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.data.cifar import HUNDRED, read_cifar10, read_cifar100
from benchmarks.data.draws import DRAW_SEED, Set, draw, split_off
from benchmarks.where import HERE, Where


class Pixels(NamedTuple):
    """Mean and deviation of every channel, ``(C,)`` each."""

    mean: Tensor
    std: Tensor

    def standardise(self, x: Tensor) -> Tensor:
        """Bring images in [0, 1] to mean 0 and deviation 1."""
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def restore(self, x: Tensor) -> Tensor:
        """Bring them back to [0, 1]; padded pixels, zero when standardised, become the mean."""
        mean, std = (value.to(x).view(-1, 1, 1) for value in self)
        return (x * std + mean).clamp(0, 1)


@dataclass(frozen=True)
class Data:
    """Standardised images and labels of the draw, the validation images and the test set.

    Unlabelled images, with label -1, come behind those of the draw.
    """

    train: Set
    validation: Set
    test: Set
    pixels: Pixels
    kind: str

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return int(self.train[1].max()) + 1

    def part(self, name: str) -> Set:
        """Return a part: ``"train"``, ``"validation"`` or ``"test"``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@lru_cache(maxsize=2)
def read_data(
    name: str,
    root: str,
    per_class: int,
    validation_per_class: int,
    unlabelled_per_class: int = 0,
    mixed: int = 0,
    test_per_class: int | None = None,
) -> Data:
    """Read a data set and draw from it.

    :param name: ``"CIFAR-10"``, or another of :func:`paper_benchmark`'s.
    :param per_class: labelled training images of a class; as many are drawn for validation, and
        without their labels, as the next two say, all different.
    :param mixed: unlabelled mixed images for every training image, behind all others.
    :param test_per_class: test images of a class; None: all.
    :raises FileNotFoundError: when it is not there.
    """
    everything, test, kind = read_set(name, root)
    chosen, rest = split_off(everything, per_class)
    validation, rest = split_off(rest, validation_per_class)
    pixels = Pixels(chosen[0].mean((0, 2, 3)), chosen[0].std((0, 2, 3)))
    if unlabelled_per_class:
        chosen = _with_hidden(chosen, draw(rest, unlabelled_per_class)[0])
    if mixed:
        chosen = _with_hidden(chosen, mixed_images(chosen[0], mixed * len(chosen[0]), DRAW_SEED))
    if test_per_class is not None:
        test = draw(test, test_per_class)
    sets = [(pixels.standardise(x), y) for x, y in (chosen, validation, test)]
    return Data(*sets, pixels, f"{name} ({kind})")


def _with_hidden(data: Set, images: Tensor) -> Set:
    """Put images without labels behind a set: their labels are -1."""
    hidden = torch.full((len(images),), -1)
    return torch.cat([data[0], images]), torch.cat([data[1], hidden])


def read_set(name: str, root: str) -> tuple[Set, Set, str]:
    """Read training and test set, images in [0, 1], and say what was found.

    :param name: ``"CIFAR-10"``, or another of :func:`paper_benchmark`'s.
    :raises FileNotFoundError: when it is not there.
    """
    if name == "CIFAR-10":
        return read_cifar10(root)
    if name == "CIFAR-100" and (Path(root) / HUNDRED).is_file():
        train, test, _ = read_cifar100(root)
        return train, test, "200 per class"
    found = paper_benchmark(name, root)
    datasets = [stream[0].dataset.eval() for stream in (found.train_stream, found.test_stream)]
    sets = [
        (torch.stack([row[0] for row in dataset]), torch.tensor(list(dataset.targets)))
        for dataset in datasets
    ]
    return sets[0], sets[1], "original"


def features_of(data: Data, part: str, encoder: Encoder, where: Where = HERE) -> Tensor:
    """Return S's features of a part, ``(N, dim)``, computed once and kept in the feature store."""
    images, labels = data.part(part)
    raw = data.pixels.restore(images)
    plain = transfer_benchmark((raw, labels), (raw[:2], labels[:2]))
    stored = with_source_features(plain, encoder, streams=["train"], device=where.device)
    rows = stored.train_stream[0].dataset.source_features
    return torch.stack([row.float() for row in rows])
