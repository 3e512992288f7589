"""MNIST and USPS as a pair of domains, and the paper's other pairs, by one protocol.

Fixed before any target test label was read: 2,000 MNIST and 1,800 USPS training images (ADDA's
numbers), each class by its share, drawn by a seed; whole test sets; 28 x 28 grey pixels in [0, 1];
training images turned by up to 15 degrees, shifted by up to 0.1 of their side and scaled by 0.8 to
1.2, each on its own. Other pairs have all their images, in ``paper_benchmark``'s shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl import adaptation_benchmark, paper_benchmark

DIRECTIONS = ("MN-US", "US-MN")
COUNTS = {"MN": 2000, "US": 1800}
#: What else the paper's Table 5 has, and MNIST to optdigits, 8 x 8 pixels, out of packages.
SMALL, OTHERS = "digits-mini", ("SV-MN", "MN-SV", "ST-CI", "CI-ST")

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pair:
    """Images ``(N, C, H, W)`` and labels ``(N,)``.

    ``target`` has images alone: the labels of the target's training rows are not kept. Without a
    test set of the source (digits-mini) ``source_test`` is None.
    """

    source: Images
    source_test: Images | None
    target: Tensor
    target_test: Images

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, ``(C, H, W)``."""
        return tuple(self.target.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.source[1].max()) + 1

    def to(self, device: str) -> Pair:
        """Give the pair with its images and labels on a device."""

        def moved(images: Images) -> Images:
            return images[0].to(device), images[1].to(device)

        held_out = None if self.source_test is None else moved(self.source_test)
        return Pair(moved(self.source), held_out, self.target.to(device), moved(self.target_test))


def read_pair(direction: str, root: str, counts: dict[str, int] | None, seed: int) -> Pair:
    """Read both domains.

    :param direction: a name of ``paper_benchmark``, source first.
    :param root: folder with the data sets as torchvision keeps them.
    :param counts: training images of MNIST and USPS, where they are the pair; None: all.
    :param seed: of the draw.
    :raises FileNotFoundError: when a data set is not there.
    """
    whole = paper_benchmark(direction, root)
    source, target = whole.source_stream[0].dataset.eval(), whole.train_stream[0].dataset.eval()
    wanted: list[list[int] | None] = [None, None]
    if counts is not None and direction in DIRECTIONS:
        first, second = direction.split("-")
        # The other direction has the labels by which each class gets its share.
        target = paper_benchmark(f"{second}-{first}", root).source_stream[0].dataset.eval()
        wanted = [
            stratified(source.targets, counts[first], seed),
            stratified(target.targets, counts[second], seed),
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


def stratified(targets: Any, count: int | None, seed: int) -> list[int] | None:
    """Draw so many rows, each class by its share (the largest remainders get one more)."""
    labels = torch.tensor([int(label) for label in targets])
    if count is None or count >= len(labels):
        return None
    generator = torch.Generator().manual_seed(seed)
    shares = torch.bincount(labels) * (count / len(labels))
    take = shares.floor().long()
    take[(shares - take).argsort(descending=True)[: count - int(take.sum())]] += 1
    chosen = []
    for label, number in enumerate(take.tolist()):
        rows = (labels == label).nonzero().flatten()
        chosen += rows[torch.randperm(len(rows), generator=generator)[:number]].tolist()
    return sorted(chosen)


def _rows(dataset: Any, rows: list[int] | None) -> Images:
    found = [dataset[row] for row in (range(len(dataset)) if rows is None else rows)]
    return torch.stack([row[0] for row in found]), torch.tensor([int(row[1]) for row in found])


def jitter(images: Tensor) -> Tensor:
    """Turn, shift and scale every image on its own, ``(N, C, H, W)``; empty space is black."""
    count = len(images)
    angle = (2 * torch.rand(count) - 1) * (15 * torch.pi / 180)
    scale = 1 / (0.8 + 0.4 * torch.rand(count))
    shift = 2 * 0.1 * (2 * torch.rand(count, 2) - 1)  # of a side that is 2 wide
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    matrix = torch.stack(rows, 1).to(images)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class JitterOne:
    """The same for a single image ``(1, H, W)``, as a data set's transform."""

    def __call__(self, image: Tensor) -> Tensor:
        """Give the jittered image."""
        return jitter(image.unsqueeze(0))[0]


def as_benchmark(pair: Pair, train_transform: Any = None) -> Any:
    """Make the Avalanche benchmark: no target label is in its training stream."""
    hidden = torch.full((len(pair.target),), -1)
    return adaptation_benchmark(
        pair.source,
        (pair.target, hidden),
        pair.target_test,
        source_test=pair.source_test,
        train_transform=train_transform,
    )
