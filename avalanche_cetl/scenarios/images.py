"""Images with labels, read from whatever a user has, with labels that can be hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_tensor

UNLABELLED = -1


class LabelledImages(Dataset):
    """Images in memory, each with a class index or -1.

    Holds nothing else: where a label was hidden, no copy of it is left to be read.

    :param images: a tensor ``(N, C, H, W)``, or a list of N images of any kind.
    :param targets: N class indices, -1 for unlabelled.
    :raises ValueError: when lengths differ.
    """

    def __init__(self, images: Tensor | list[Any], targets: Sequence[int]):
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images, but {len(targets)} labels.")
        self.images = images
        self.targets = [int(target) for target in targets]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], self.targets[index]

    def select(self, indices: Sequence[int]) -> LabelledImages:
        """Give some rows as a set of their own (images copied, not referred to)."""
        chosen = [int(i) for i in indices]
        if isinstance(self.images, Tensor):
            images: Tensor | list[Any] = self.images[chosen]
        else:
            images = [self.images[i] for i in chosen]
        return LabelledImages(images, [self.targets[i] for i in chosen])

    def relabel(self, targets: Sequence[int]) -> LabelledImages:
        """Give the same images with other labels."""
        return LabelledImages(self.images, targets)

    def join(self, other: LabelledImages) -> LabelledImages:
        """Give this set's rows followed by the other's.

        :raises ValueError: when the images differ in shape.
        """
        mine, others = self.images, other.images
        if isinstance(mine, Tensor) and isinstance(others, Tensor):
            if mine.shape[1:] != others.shape[1:]:
                raise ValueError(
                    f"images of shape {tuple(mine.shape[1:])} and {tuple(others.shape[1:])} cannot "
                    "share a stream; bring both to one size and number of channels first."
                )
            images: Tensor | list[Any] = torch.cat([mine, others])
        else:
            images = [*mine, *others]
        return LabelledImages(images, self.targets + other.targets)


def read_images(data: Any, keep_pil: bool = False) -> LabelledImages:
    """Read every image once into memory.

    :param data: a pair ``(images, labels)`` of arrays or tensors, or any map-style data set
        of ``(image, label)``. Arrays: ``(N, H, W)``, ``(N, H, W, C)`` as uint8 in 0 ... 255, or
        ``(N, C, H, W)`` and ``(N, H, W)`` as floats, kept as they are. Without transforms PIL
        images become tensors in [0, 1].
    :param keep_pil: leave the items of a data set as they are, for transforms that follow.
    :raises TypeError: for anything else.
    :raises ValueError: for an empty set, or labels that are not class indices.
    """
    if isinstance(data, LabelledImages):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and not callable(data[0]):
        images: Tensor | list[Any] = _stack(data[0])
        targets = [_class_index(label) for label in data[1]]
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        rows = [data[i] for i in range(len(data))]
        items = [row[0] for row in rows]
        targets = [_class_index(row[1]) for row in rows]
        if not keep_pil:
            items = [i if isinstance(i, Tensor) else to_tensor(i) for i in items]
        same = all(isinstance(i, Tensor) and i.shape == items[0].shape for i in items)
        images = torch.stack(items) if same and items else items
    else:
        raise TypeError(
            "a data set has to be a pair (images, labels) of arrays or tensors, or a map-style "
            f"data set of (image, label); got {type(data).__name__}."
        )
    if not len(images):
        raise ValueError("the data set is empty.")
    return LabelledImages(images, targets)


def _class_index(label: Any) -> int:
    value = int(label)
    if value < 0 or value != float(label):
        raise ValueError(f"labels have to be class indices from 0, got {label!r}.")
    return value


def _stack(images: Any) -> Tensor:
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.asarray(images))
    if images.dim() not in (3, 4):
        raise ValueError(
            "images have to be (N, C, H, W), (N, H, W) or uint8 (N, H, W, C); got "
            f"{tuple(images.shape)}."
        )
    if images.dtype == torch.uint8:
        if images.dim() == 4 and images.shape[-1] in (1, 3):
            images = images.permute(0, 3, 1, 2)
        images = images.float() / 255
    if images.dim() == 3:
        images = images.unsqueeze(1)
    return images.float().contiguous()


def choose_labelled(
    targets: Sequence[int],
    labels_per_class: int | None,
    labelled_fraction: float | None,
    seed: int,
) -> list[int]:
    """Choose, class by class, the rows that keep their label.

    :param labels_per_class: exactly so many of each class, >= 0; or
    :param labelled_fraction: this share of each class, in [0, 1], rounded, at least one where
        it is above 0. Neither: all rows.
    :param seed: the same seed chooses the same rows.
    :return: sorted indices.
    :raises ValueError: when both are given, or a class has too few rows.
    """
    if labels_per_class is not None and labelled_fraction is not None:
        raise ValueError("give labels_per_class or labelled_fraction, not both.")
    if labels_per_class is not None and labels_per_class < 0:
        raise ValueError(f"labels_per_class={labels_per_class} has to be >= 0.")
    if labelled_fraction is not None and not 0 <= labelled_fraction <= 1:
        raise ValueError(f"labelled_fraction={labelled_fraction} is outside [0, 1].")
    if labels_per_class is None and labelled_fraction is None:
        return list(range(len(targets)))
    labels = torch.tensor(list(targets))
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        if labels_per_class is not None:
            count = labels_per_class
        else:
            assert labelled_fraction is not None
            count = max(int(labelled_fraction > 0), round(labelled_fraction * len(rows)))
        if count > len(rows):
            raise ValueError(f"class {label} has {len(rows)} rows, fewer than {count}.")
        chosen += rows[torch.randperm(len(rows), generator=generator)[:count]].tolist()
    return sorted(chosen)
