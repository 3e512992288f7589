"""MNIST and USPS as a pair of domains, and the paper's other pairs, by one protocol.

Fixed before any target test label of theirs was read: 2,000 MNIST and 1,800 USPS training images
(ADDA's numbers), each class by its share, drawn by a seed; whole test sets; 28 x 28 grey pixels in
[0, 1]; training images turned by up to 15 degrees, shifted by up to 0.1 of their side and scaled by
0.8 to 1.2, each on its own.

MNIST to MNIST-M came later: 2,000 training images of MNIST, 200 of each class of MNIST-M, and all
test images of ``mnist_m.npz``, 32 x 32 in colour. Other pairs have all their images, in
``paper_benchmark``'s shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl import adaptation_benchmark, paper_benchmark
from benchmarks.data.draws import Set, draw, shared_rows

DIRECTIONS = ("MN-US", "US-MN")
COUNTS = {"MN": 2000, "US": 1800}
#: What else the paper's Table 5 has, and MNIST to optdigits, 8 x 8 pixels, out of packages.
SMALL, OTHERS = "digits-mini", ("SV-MN", "MN-SV", "ST-CI", "CI-ST")
#: MNIST to MNIST-M, which the paper does not have.
COLOUR = "MN-MM"
#: Those whose images are photographs.
PHOTOGRAPHS = ("ST-CI", "CI-ST")


@dataclass(frozen=True)
class Pair:
    """Images ``(N, C, H, W)`` and labels ``(N,)``.

    ``target`` has images alone: the labels of the target's training rows are not kept. Without a
    test set of the source (digits-mini) ``source_test`` is None.
    """

    source: Set
    source_test: Set | None
    target: Tensor
    target_test: Set

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image, ``(C, H, W)``."""
        return tuple(self.target.shape[1:])

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return int(self.source[1].max()) + 1

    def to(self, device: str) -> Pair:
        """Return the pair with its images and labels on a device."""

        def moved(images: Set) -> Set:
            return images[0].to(device), images[1].to(device)

        held_out = None if self.source_test is None else moved(self.source_test)
        return Pair(moved(self.source), held_out, self.target.to(device), moved(self.target_test))


def read_pair(direction: str, root: str, counts: dict[str, int] | None, seed: int) -> Pair:
    """Read both domains.

    :param direction: a name of ``paper_benchmark``, source first, or ``"MN-MM"``.
    :param root: folder with the data sets as torchvision keeps them, and ``mnist_m.npz``.
    :param counts: training images of MNIST and USPS, where they are the pair; of MNIST-M as many
        as of MNIST, the same number of each class; None: all.
    :param seed: of the draw.
    :raises FileNotFoundError: when a data set is not there.
    """
    if direction == COLOUR:
        return _to_colour(root, counts, seed)
    whole = paper_benchmark(direction, root)
    source, target = whole.source_stream[0].dataset.eval(), whole.train_stream[0].dataset.eval()
    wanted: list[list[int] | None] = [None, None]
    if counts is not None and direction in DIRECTIONS:
        first, second = direction.split("-")
        # The other direction has the labels by which each class gets its share.
        target = paper_benchmark(f"{second}-{first}", root).source_stream[0].dataset.eval()
        wanted = [
            _drawn(source.targets, counts[first], seed),
            _drawn(target.targets, counts[second], seed),
        ]
    else:
        wanted[1] = [i for i, domain in enumerate(target.domain_labels) if int(domain) == 0]
    held_out = whole.streams.get("source_test")
    return Pair(
        _rows(source, wanted[0]),
        None if held_out is None else _rows(held_out[0].dataset.eval(), None),
        _rows(target, wanted[1])[0],
        _rows(whole.test_stream[0].dataset, None),
    )


def mnist_m(root: str) -> tuple[Set, Set]:
    """Return the training and test images of MNIST-M, 32 x 32 in colour.

    :raises FileNotFoundError: when ``mnist_m.npz`` is not in the folder.
    """
    with np.load(Path(root) / "mnist_m.npz") as file:
        found = {key: torch.as_tensor(file[key]) for key in file.files}
    sets = []
    for part in ("train", "test"):
        x = found[f"x_{part}"].permute(0, 3, 1, 2).float() / 255
        sets.append((x.contiguous(), found[f"y_{part}"].long()))
    return sets[0], sets[1]


def in_colour(images: Set) -> Set:
    """Return MNIST's images in the shape of MNIST-M: two pixels of black around, three channels."""
    return F.pad(images[0], (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous(), images[1]


def _to_colour(root: str, counts: dict[str, int] | None, seed: int) -> Pair:
    train, test = mnist_m(root)
    grey = read_pair(DIRECTIONS[0], root, counts, seed)
    assert grey.source_test is not None, "MNIST has test images"
    if counts is not None:
        train = draw(train, counts["MN"] // 10, seed)
    return Pair(in_colour(grey.source), in_colour(grey.source_test), train[0], test)


def _drawn(targets: Any, count: int, seed: int) -> list[int] | None:
    """Draw so many rows, each class by its share; None when that is all of them."""
    labels = torch.tensor([int(label) for label in targets])
    return None if count >= len(labels) else shared_rows(labels, count, seed)


def _rows(dataset: Any, rows: list[int] | None) -> Set:
    found = [dataset[row] for row in (range(len(dataset)) if rows is None else rows)]
    return torch.stack([row[0] for row in found]), torch.tensor([int(row[1]) for row in found])


def as_benchmark(pair: Pair, train_transform: Any = None, source_free: bool = False) -> Any:
    """Make the Avalanche benchmark: no target label is in its training stream.

    :param source_free: no image of the source either.
    """
    hidden = torch.full((len(pair.target),), -1)
    return adaptation_benchmark(
        None if source_free else pair.source,
        (pair.target, hidden),
        pair.target_test,
        source_test=None if source_free else pair.source_test,
        train_transform=train_transform,
    )
