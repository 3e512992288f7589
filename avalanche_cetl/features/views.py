"""Views of a data set that are the same every time, augmented or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from avalanche_cetl.common.seeds import seeded
from avalanche_cetl.encoders.fingerprint import Fingerprint


class SeededView(Dataset[Any]):
    """One view of a data set: item i is always the same, even if its transform draws.

    While an item is made, the global generators of PyTorch, numpy and Python are seeded by seed,
    view and row; their states are restored afterwards.

    :param dataset: items are tuples or lists whose first entry is the image, a tensor.
    :param seed: of all views.
    :param view: number of this one.
    :ivar draws: whether making an item may draw; seeding those that do not would only cost time.
    """

    def __init__(self, dataset: Any, seed: int, view: int):
        self.dataset, self.seed, self.view = dataset, seed, view
        self.draws = may_draw(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not self.draws:
            return self.dataset[index]
        with seeded(f"{self.seed} {self.view} {index}"):
            return self.dataset[index]

    def image(self, index: int) -> Tensor:
        """Return the image alone.

        :raises TypeError: when it is no tensor.
        """
        image = self[index][0]
        if not isinstance(image, Tensor):
            raise TypeError(
                f"row {index} is a {type(image).__name__}; the benchmark's transforms have to give "
                "tensors, e.g. with torchvision.transforms.ToTensor()."
            )
        return image

    def kind(self) -> tuple[torch.Size, torch.dtype]:
        """Return shape and type of the first image."""
        image = self.image(0)
        return image.shape, image.dtype

    def check_repeats(self) -> None:
        """Check that an item is the same when it is read again.

        :raises ValueError: when it is not, because it draws from a generator of its own.
        """
        for index in range(min(2, len(self))):
            if not torch.equal(self.image(index), self.image(index)):
                raise changes(index)


def image_digest(image: Tensor) -> bytes:
    """Return a SHA-256 of an image."""
    return bytes.fromhex(Fingerprint().tensor(image).hexdigest())


def changes(index: int) -> ValueError:
    """Return the error of an image that is another one when it is read again.

    :param index: its row.
    """
    return ValueError(
        f"row {index} is another image each time although the global generators of torch, numpy "
        "and random are seeded: a transform, or the data set, has a generator of its own. Let it "
        "draw from a global one, so that an image and its features belong together."
    )


class Images(Dataset[Any]):
    """The images of a view alone, with their row."""

    def __init__(self, view: SeededView):
        self.view = view

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> Tensor:
        return self.view.image(index)


def may_draw(dataset: Any) -> bool:
    """Whether making an item may draw random numbers.

    False for tensors in memory, and for Avalanche's data sets over them where no transform is
    active; True for everything else.
    """
    if getattr(type(dataset), "__getitem__", None) is TensorDataset.__getitem__:
        return False  # a subclass with one of its own may draw
    if hasattr(dataset, "draws"):
        return bool(dataset.draws)
    node = getattr(dataset, "_flat_data", dataset)
    parts = getattr(node, "_datasets", None)
    if not parts:
        return True
    for name in ("_transform_groups", "_frozen_transform_groups"):
        groups = getattr(node, name, None)
        if groups is not None and _active(groups[groups.current_group]):
            return True
    return any(may_draw(part) for part in parts)


def _active(transform: Any) -> bool:
    """Whether there is a transform, or one inside a tuple or composition of them."""
    if transform is None:
        return False
    inner = getattr(transform, "transforms", None)
    return any(_active(part) for part in inner) if isinstance(inner, list | tuple) else True
