"""Sets of different size, colour and classes, brought to one shape and one list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.common.images import check_range, image_tensor, recoloured
from avalanche_cetl.common.labels import UNLABELLED
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.scenarios.images import LabelledImages, as_floats
from avalanche_cetl.scenarios.labels import class_index, named_class, named_classes

Shape = tuple[int, int, int]


def common_shape(sets: Sequence[LabelledImages], like: LabelledImages) -> Shape | None:
    """Return the shape that all sets are brought to where the user names none.

    Height and width are those of ``like``; channels are the most that any set has. None where all
    shapes agree already, and where the images of a set have several shapes or are no tensors
    (because a transform follows): these need a shape from the user.
    """
    if any(not isinstance(data.images, Tensor) for data in sets):
        return None
    shapes = [data.shape for data in sets]
    if len(set(shapes)) == 1 or like.shape is None:
        return None
    channels = max(shape[0] for shape in shapes if shape is not None)
    return channels, like.shape[1], like.shape[2]


def fit(data: LabelledImages, shape: Shape, how: str) -> LabelledImages:
    """Return the same rows with images of one shape.

    Channels change by the rule of :func:`avalanche_cetl.common.images.recoloured`.

    :param data: rows with images of any shape.
    :param shape: ``(C, H, W)`` wanted.
    :param how: ``"resize"``: bilinear, antialiased, to exactly the size; ``"pad"``: zeros on all
        sides, as evenly as possible; images that are larger are first resized to fit in, and
        keep their aspect.

    :raises ValueError: for other numbers of channels than 1 and 3.
    """
    if isinstance(data.images, Tensor):
        if data.shape == shape:
            return data
        parts = [_fitted(as_floats(part), shape, how) for part in data.images.split(1024)]
        return LabelledImages(torch.cat(parts), data.targets, data.classes)
    tensors = [as_floats(image_tensor(image)) for image in data.images]
    images = torch.cat([_fitted(image[None], shape, how) for image in tensors])
    return LabelledImages(images, data.targets, data.classes)


def _fitted(images: Tensor, shape: Shape, how: str) -> Tensor:
    images = recoloured(images, shape[0])
    size = images.shape[2:]
    if how == "resize":
        return _resized(images, shape[1:])
    scale = min(1.0, shape[1] / size[0], shape[2] / size[1])
    images = _resized(images, tuple(max(1, round(side * scale)) for side in size))
    gaps = [wanted - side for wanted, side in zip(shape[1:], images.shape[2:], strict=True)]
    return F.pad(images, [s for g in reversed(gaps) for s in (g // 2, g - g // 2)])


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode="bilinear", antialias=True)


def choose_classes(data: LabelledImages, classes: Sequence[int | str] | None) -> LabelledImages:
    """Return the rows of some classes; the n-th of the list becomes class n.

    :param data: a set with its labels.
    :param classes: class indices, or names where the set has the names of its classes; None
        keeps all. A name may list synonyms, ``"automobile|car"``.
    :return: with names where the set has some: those that were chosen; its own for classes that
        were chosen by index.
    :raises ValueError: when a class is not known or does not occur.
    :raises TypeError: for one name in place of a list.
    """
    if classes is None:
        return data
    if isinstance(classes, str):
        raise TypeError(f"classes={classes!r} has to be a list, e.g. classes=[{classes!r}].")
    if not len(classes):
        raise ValueError("classes=[] leaves nothing; None keeps all classes.")
    order: dict[int, int] = {}
    for new, wanted in enumerate(classes):
        for old in _indices(data, wanted):
            if old in order:
                raise ValueError(
                    f"classes={list(classes)}: the class {named_class(old, data.classes)} is named "
                    "twice."
                )
            order[old] = new
    missing = set(order.values()) - {order.get(label) for label in data.targets}
    if missing and set(data.targets) != {UNLABELLED}:
        told = [
            repr(classes[new]) if isinstance(classes[new], str) else named_class(old, data.classes)
            for old, new in order.items()
            if new in missing
        ]
        raise ValueError(f"classes [{', '.join(dict.fromkeys(told))}] do not occur in the data.")
    order[UNLABELLED] = UNLABELLED
    rows = [i for i, label in enumerate(data.targets) if label in order]
    chosen = data.select(rows)
    names = None if data.classes is None else [_name(data.classes, wanted) for wanted in classes]
    return chosen.relabel([order[label] for label in chosen.targets], names)


def _indices(data: LabelledImages, wanted: int | str) -> list[int]:
    if not isinstance(wanted, str):
        index = class_index(wanted)
        if index == UNLABELLED:
            raise ValueError("classes: -1 stands for rows without a label, and is no class.")
        return [index]
    if data.classes is None:
        raise ValueError(
            f"the class {wanted!r} is named, but this set does not know its classes' names; give "
            "indices, or a data set with a list `classes`."
        )
    found = [data.classes.index(name) for name in wanted.split("|") if name in data.classes]
    if not found:
        raise ValueError(f"the class {wanted!r} is not among {data.classes}.")
    return found


def _name(names: Sequence[str], wanted: int | str) -> str:
    if isinstance(wanted, str):
        return wanted.split("|")[0]
    return names[wanted] if wanted < len(names) else str(wanted)


def _names(sets: Sequence[LabelledImages]) -> list[str] | None:
    """Return the names of the classes of the first set that has some."""
    return next((data.classes for data in sets if data.classes), None)


def check_labels(sets: Sequence[LabelledImages], what: str) -> None:
    """Raise ValueError unless the sets together have at least two classes, counted from 0."""
    found = sorted({label for data in sets for label in data.targets if label >= 0})
    if not found:
        raise ValueError(
            f"{what} has no label; of image folders, those with one folder a class do."
        )
    if found[0] != 0:
        raise ValueError(
            f"the labels of {what} start at {named_class(found[0], _names(sets))}: they have to be "
            "class indices from 0; subtract, or choose classes=[...], which counts anew."
        )
    if len(found) < 2:
        raise ValueError(
            f"{what} has one class only, {named_class(found[0], _names(sets))}: there is nothing "
            "to tell apart."
        )


def check_known(
    sets: Sequence[LabelledImages],
    known: Sequence[LabelledImages],
    what: str,
    all_labelled: bool,
    where: str = "the rows to train on",
) -> None:
    """Check that the labels of some sets all occur in other sets.

    :param sets: whose labels are checked.
    :param known: in which they have to occur.
    :param what: names the first in errors.
    :param all_labelled: check as well that every row has a label.
    :param where: names the other sets in errors.
    :raises ValueError: when a label does not occur, or a row has none.
    """
    allowed = {label for data in known for label in data.targets} | {UNLABELLED}
    found = {label for data in sets for label in data.targets}
    if not found <= allowed:
        names = _names([*sets, *known])
        raise ValueError(
            f"{what} has the labels {named_classes(found - allowed, names)}, which do not occur in "
            f"{where}: there are {named_classes(allowed - {UNLABELLED}, names)}."
        )
    if all_labelled and UNLABELLED in found:
        raise ValueError(f"{what} has rows without a label (-1); there every row needs one.")


def check_names(sets: Sequence[LabelledImages], what: str, tell: bool = True) -> None:
    """Check that a class that several sets name has the same number in all of them.

    Every folder and data set numbers its own classes. Where a number has two names, which may be
    two ways to write one, a warning says so.

    :param sets: of the same classes.
    :param what: names them.
    :param tell: whether to warn.

    :raises ValueError: for a class with two numbers.
    """
    first: dict[str, int] = {}
    for data in sets:
        for number, name in enumerate(data.classes or []):
            if first.setdefault(name, number) != number:
                lists = [other.classes for other in sets if other.classes]
                raise ValueError(
                    f"class {name!r} is number {first[name]} in one part of {what} and {number} in "
                    f"another, whose classes are {lists}; choose classes=[...] by name."
                )
    names: dict[int, str] = {}
    for data in sets if tell else ():
        for number, name in enumerate(data.classes or []):
            other = names.setdefault(number, name)
            if other.casefold() != name.casefold():
                warn_caller(
                    f"class {number} is {other!r} in one part of {what} and {name!r} in another: "
                    "they are taken for one class. Where they are two, number the classes "
                    'together, choose classes=[...] by name ("car|automobile" takes either), or '
                    "give the experiences heads of their own (task_labels=True)."
                )
                return


def check_one_shape(sets: dict[str, LabelledImages]) -> None:
    """Check that all images have one shape.

    :raises ValueError: when they have not; names the sets and their shapes.
    """
    shapes: dict[str, Any] = {name: data.shape for name, data in sets.items()}
    if len(set(shapes.values()) - {None}) <= 1 and None not in shapes.values():
        return
    told = {
        name: shape if shape is not None else "several shapes" for name, shape in shapes.items()
    }
    raise ValueError(f"the images differ in shape: {told}; name one with image_shape=(C, H, W).")


def check_values(sets: dict[str, LabelledImages]) -> None:
    """Check that images are in a range that networks are made for.

    Warns of floats that are never negative and reach beyond 2: images in [0, 1] do not reach that
    far, and standardised ones have both signs.

    :raises ValueError: for values that are not finite, or bytes as floats, naming the set.
    """
    for name, data in sets.items():
        images = [data.images] if isinstance(data.images, Tensor) else data.images
        parts = [part for part in images if isinstance(part, Tensor)]
        floats = [part for part in parts if part.is_floating_point() and part.numel()]
        ranges = [check_range(part, f"the images of {name!r}") for part in floats]
        low, high = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else (0, 0)
        if low >= 0 and high > 2:
            warn_caller(
                f"the images of {name!r} have values from {low:g} to {high:g}; networks are made "
                "for values in [0, 1], or standardised ones. Divide by what counts as white."
            )
