"""Images in memory with their labels, read from all kinds of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.flat_data import FlatData
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from avalanche_cetl.common.image_files import ImageFiles
from avalanche_cetl.common.images import (
    array_tensor,
    channels_last,
    check_type,
    image_tensor,
    plain_picture,
)
from avalanche_cetl.common.labels import UNLABELLED
from avalanche_cetl.common.picks import described
from avalanche_cetl.scenarios.labels import class_index, class_indices

_EMPTY = "the data set is empty: it has no image."


class LabelledImages(Dataset[Any]):
    """Images in memory with their labels, and nothing else.

    :param images: a tensor ``(N, C, H, W)`` of floats, or of bytes, whose items become floats in
        [0, 1]; or a list of N images of any kind.
    :param targets: N class indices, -1 for unlabelled.
    :param classes: names of the classes, where they are known.
    :ivar draws: False: reading an item draws no random numbers.
    :raises ValueError: when lengths differ.
    """

    draws = False

    def __init__(
        self,
        images: Tensor | list[Any],
        targets: Sequence[int],
        classes: Sequence[str] | None = None,
    ):
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images, but {len(targets)} labels.")
        self.images = images
        self.targets = [int(target) for target in targets]
        self.classes = list(classes) if classes is not None else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        if isinstance(image, Tensor) and image.dtype == torch.uint8:
            image = image.float() / 255
        return image, self.targets[index]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of every image, ``(C, H, W)``; None for images of several shapes."""
        if isinstance(self.images, Tensor):
            return tuple(self.images.shape[1:])
        shapes = {_shape_of(image) for image in self.images}
        return shapes.pop() if len(shapes) == 1 else None

    def select(self, indices: Sequence[int]) -> LabelledImages:
        """Return some rows as a set of their own; its images are copies."""
        chosen = [int(i) for i in indices]
        if isinstance(self.images, Tensor):
            images: Tensor | list[Any] = self.images[chosen]
        else:
            images = [self.images[i] for i in chosen]
        return LabelledImages(images, [self.targets[i] for i in chosen], self.classes)

    def relabel(
        self, targets: Sequence[int], classes: Sequence[str] | None = None
    ) -> LabelledImages:
        """Return the same images with other labels."""
        return LabelledImages(self.images, targets, self.classes if classes is None else classes)

    def join(self, other: LabelledImages) -> LabelledImages:
        """Return this set's rows followed by the other's.

        :raises ValueError: when the images differ in shape.
        """
        mine, others = self.images, other.images
        if isinstance(mine, Tensor) and isinstance(others, Tensor):
            if mine.shape[1:] != others.shape[1:]:
                raise ValueError(
                    f"images of shape {tuple(mine.shape[1:])} and {tuple(others.shape[1:])} cannot "
                    "share a stream; bring both to one size and number of channels first."
                )
            if mine.dtype != others.dtype:
                mine, others = as_floats(mine), as_floats(others)
            images: Tensor | list[Any] = torch.cat([mine, others])
        else:
            images = [*mine, *others]
        return LabelledImages(images, self.targets + other.targets, self.classes)


def _shape_of(image: Any) -> tuple[int, ...]:
    if isinstance(image, Image.Image):
        return len(image.getbands()), image.height, image.width
    if isinstance(image, np.ndarray) and image.ndim == 3 and channels_last(image.shape):
        return image.shape[2], *image.shape[:2]
    return tuple(image.shape)


def as_floats(images: Tensor) -> Tensor:
    """Return bytes as floats in [0, 1], and floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def read_images(data: Any, keep_pil: bool = False) -> LabelledImages:
    """Read every image once into memory.

    Arrays of images are ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` as uint8 in 0 ... 255,
    or ``(N, C, H, W)`` and ``(N, H, W)`` as floats, which stay as they are. Of arrays that are
    neither grey nor colour, a last side shorter than both others holds the channels; tensors of
    that kind are ``(N, C, H, W)``. For items of a data
    set see :func:`avalanche_cetl.common.images.image_tensor`. A label of -1 is unknown.

    :param data: a pair ``(images, labels)`` of arrays or tensors; any map-style data set of
        ``(image, label)``, an AvalancheDataset too; or the path of a folder, with one folder of
        images a class, or with images directly in it (label -1).
    :param keep_pil: keep arrays and PIL images, for transforms that follow; PIL images are only
        made plain, see :func:`avalanche_cetl.common.images.plain_picture`, and those of files
        RGB. Without it they become tensors in [0, 1].
    :raises TypeError: for anything else.
    :raises ValueError: for a folder that is not there, an empty set, an image that cannot be
        read (named, with its row), or labels that are not class indices.
    """
    if isinstance(data, LabelledImages):
        if not len(data):
            raise ValueError(_EMPTY)
        return data
    classes = _class_names(data)
    if isinstance(data, str | Path):
        files = ImageFiles(data, Image.Image.copy if keep_pil else None)
        images, targets, classes = _one_tensor(files.read()), files.labels, files.classes or None
    elif is_pair(data):
        if isinstance(data[0], list | tuple) and any(isinstance(i, Image.Image) for i in data[0]):
            # Not an array, which would hold their raw numbers.
            images = read_images(_WithoutLabels(list(data[0])), keep_pil).images
        else:
            images = _stack(data[0])
        targets = class_indices(data[1])
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        rows = [_row(data, i, keep_pil) for i in range(len(data))]
        images, targets = _one_tensor([row[0] for row in rows]), [row[1] for row in rows]
    else:
        raise TypeError(
            "a data set has to be a pair (images, labels) of arrays or tensors, a map-style data "
            f"set of (image, label), or the path of a folder; got {type(data).__name__}."
        )
    if not len(images):
        raise ValueError(_EMPTY)
    return LabelledImages(images, targets, classes)


def _one_tensor(items: list[Any]) -> Tensor | list[Any]:
    """Return images of one shape as one tensor; others as a list, with one type of numbers."""
    if len({item.dtype for item in items if isinstance(item, Tensor)}) > 1:
        items = [as_floats(item) if isinstance(item, Tensor) else item for item in items]
    same = all(isinstance(i, Tensor) and i.shape == items[0].shape for i in items)
    return torch.stack(items) if same and items else items


def read_unlabelled(data: Any, keep_pil: bool = False) -> LabelledImages:
    """Read images alone; labels, if there are any, are not read.

    :param data: what :func:`read_images` takes, or an array or tensor of images.
    :param keep_pil: see :func:`read_images`.
    """
    if isinstance(data, LabelledImages):
        return read_images(data).relabel([UNLABELLED] * len(data))
    if is_pair(data):
        if np.shape(data[1]) not in ((len(data[0]),), (len(data[0]), 1)):
            raise ValueError(
                f"{len(data[0])} images beside something of shape {np.shape(data[1])}, no labels "
                "of theirs; give one array of images, or a pair (images, labels)."
            )
        data = data[0]
    if isinstance(data, Tensor | np.ndarray):
        images = _stack(data)
        if not len(images):
            raise ValueError(_EMPTY)
        return LabelledImages(images, [UNLABELLED] * len(images))
    if not isinstance(data, str | Path):
        data = _WithoutLabels(data)
    read = read_images(data, keep_pil)
    return read.relabel([UNLABELLED] * len(read))


class _WithoutLabels(Dataset[Any]):
    """The same rows, each with no label; a row may also be an image alone."""

    def __init__(self, data: Any):
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise TypeError(f"{type(data).__name__} is no map-style data set of images.")
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.data[index]
        return row[0] if isinstance(row, tuple | list) else row, UNLABELLED


def is_pair(data: Any) -> bool:
    """Whether this is ``(images, labels)``: two sequences, the first an array or a tensor."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    return isinstance(data, tuple) or isinstance(data[0], Tensor | np.ndarray)


def _row(data: Any, index: int, keep_pil: bool) -> tuple[Any, int]:
    """Return image and class of a row; errors name the row."""
    try:
        row = data[index]
        if isinstance(row, Mapping):
            raise TypeError(
                f"it is {described(row)}; a data set has to give pairs (image, label): return them "
                "from its __getitem__."
            )
        return _item(row[0], keep_pil), class_index(row[1])
    except Exception as problem:
        kind = type(getattr(data, "data", data) if isinstance(data, _WithoutLabels) else data)
        told = f"{type(problem).__name__}: {problem}"
        raise ValueError(f"row {index} of {kind.__name__}: {told}") from problem


def _item(image: Any, keep_pil: bool) -> Any:
    """Return an image as it is kept: a tensor ``(C, H, W)``, or a PIL image or array."""
    if not keep_pil or isinstance(image, Tensor):
        return image_tensor(image)
    # A copy: an opened file would be read later, and has a name, in which its class often is.
    return plain_picture(image) if isinstance(image, Image.Image) else image


def _class_names(data: Any) -> list[str] | None:
    """Return the names of the classes, as torchvision's data sets keep them.

    None where a ``target_transform`` makes other numbers of them. Parts and joins of data sets
    have the names of what they are made of, where these agree: PyTorch's, and Avalanche's where
    no transform changes labels.
    """
    if getattr(data, "target_transform", None) is not None:
        return None
    names = getattr(data, "classes", None)
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return list(names)
    found = [_class_names(part) for part in _made_of(data)]
    return found[0] if found and all(other == found[0] for other in found) else None


def _made_of(data: Any) -> list[Any]:
    """Return the data sets whose rows, with their labels, a data set consists of."""
    if isinstance(data, Subset):
        return [data.dataset]
    if isinstance(data, ConcatDataset):
        return data.datasets
    node = data._flat_data if isinstance(data, AvalancheDataset) else data
    if not isinstance(node, FlatData):
        return []
    for name in ("_transform_groups", "_frozen_transform_groups"):
        groups = getattr(node, name, None)
        transform: Any = None if groups is None else groups[groups.current_group]
        if hasattr(transform, "flat_transforms") and any(transform.flat_transforms(1)):
            return []
    return list(node._datasets)


def _stack(images: Any) -> Tensor:
    # Tensors of as many channels as one likes are (N, C, H, W), as everywhere in torch.
    rows = images if isinstance(images, list | tuple) else [images]
    told = any(isinstance(row, Tensor) for row in rows)
    if not isinstance(images, Tensor):
        images = array_tensor(np.asarray(images))
    if images.dim() not in (3, 4):
        raise ValueError(
            "images have to be (N, C, H, W), (N, H, W) or uint8 (N, H, W, C); got "
            f"{tuple(images.shape)}."
        )
    check_type(images.dtype)
    if images.dim() == 4 and _channels_last(images.shape[1:], told):
        if images.dtype != torch.uint8 or images.shape[-1] == 4:
            raise ValueError(
                f"images of shape {tuple(images.shape)} and type {images.dtype} seem to have their "
                "channels last; bring them to (N, C, H, W), best as a torch tensor, or to uint8 "
                "(N, H, W, C) of other than 4 channels."
            )
        images = images.permute(0, 3, 1, 2)
    if images.dtype != torch.uint8:
        images = images.float()
    if images.dim() == 3:
        images = images.unsqueeze(1)
    result: Tensor = images.contiguous()
    return result


def _channels_last(shape: torch.Size, told: bool) -> bool:
    first, _, last = shape
    if first in (1, 3, 4) or last in (1, 3, 4):
        return last in (1, 3, 4) and first not in (1, 3, 4)
    # Where an array's shape fits both, as (64, 8, 8) does, it is (C, H, W), as it says above.
    return not told and last < min(shape[:2])
