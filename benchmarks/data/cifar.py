"""CIFAR-10 and CIFAR-100 from disk: the original batches, a folder of images, or a zip of one."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.data.draws import Set

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PARTS = ("train", "test")


def read_cifar10(root: str | Path) -> tuple[Set, Set, str]:
    """Read CIFAR-10 below a data root.

    :return: training and test set, each images ``(N, 3, 32, 32)`` in [0, 1] and labels, and
        what was found: ``"original"`` or ``"JPEG"``.
    :raises FileNotFoundError: when none is there; says where it looked.
    """
    root = Path(root)
    if (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10

        sets = [CIFAR10(str(root), train=train, download=False) for train in (True, False)]
        train, test = (
            (_float(s.data.transpose(0, 3, 1, 2)), torch.tensor(s.targets)) for s in sets
        )
        return train, test, "original"
    folder, archive = root / "cifar10-jpeg", root / "cifar10-jpeg.zip"
    if folder.is_dir():
        names = [str(path.relative_to(folder)) for path in folder.rglob("*.jpg")]
        train, test = (_decoded(names, part, lambda n: (folder / n).read_bytes()) for part in PARTS)
        return train, test, "JPEG"
    if archive.is_file():
        with zipfile.ZipFile(archive) as file:
            train, test = (_decoded(file.namelist(), part, file.read) for part in PARTS)
        return train, test, "JPEG"
    raise FileNotFoundError(
        f"no CIFAR-10 below {root}: looked for cifar-10-batches-py/ (torchvision's download), "
        "cifar10-jpeg/{train,test}/<class>/*.jpg and cifar10-jpeg.zip with the same inside."
    )


HUNDRED = "cifar100-200.zip"


def read_cifar100(root: str | Path) -> tuple[Set, Set, list[str]]:
    """Read the 200 training images per class and all test images of ``cifar100-200.zip``.

    :return: training and test set, as of :func:`read_cifar10`, and the names of the classes.
    :raises FileNotFoundError: when it is not there.
    """
    with zipfile.ZipFile(Path(root) / HUNDRED) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".png"))
        classes = sorted({name.split("/")[1] for name in names})
        train, test = (_decoded(names, part, file.read, classes) for part in PARTS)
    return train, test, classes


def _decoded(  # type: ignore[no-untyped-def]
    names: Sequence[str], part: str, read, classes: Sequence[str] = CLASSES
) -> Set:
    kinds = (".jpg", ".png")
    chosen = sorted(name for name in names if name.startswith(f"{part}/") and name[-4:] in kinds)
    images = np.stack([np.asarray(Image.open(BytesIO(read(name)))) for name in chosen])
    labels = torch.tensor([classes.index(name.split("/")[1]) for name in chosen])
    return _float(images.transpose(0, 3, 1, 2)), labels


def _float(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
