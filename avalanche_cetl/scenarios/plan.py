"""From the user's sets to the streams of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from torch import Tensor

from avalanche_cetl.common.images import check_range, image_tensor
from avalanche_cetl.common.labels import SOURCE_DOMAIN, TARGET_DOMAIN, UNLABELLED
from avalanche_cetl.common.validation import check_choice
from avalanche_cetl.scenarios.domains import (
    Shape,
    check_names,
    check_one_shape,
    check_values,
    choose_classes,
    common_shape,
    fit,
)
from avalanche_cetl.scenarios.images import (
    LabelledImages,
    as_floats,
    is_pair,
    read_images,
    read_unlabelled,
)
from avalanche_cetl.scenarios.scenario import CETLScenario, make_scenario

Transform = Callable[[Any], Any] | None
Classes = Sequence[int | str] | None


#: How images of another size are brought into the shape.
Fit = Literal["resize", "pad"]


@dataclass
class Plan:
    """The settings by which sets become streams: classes, shape, transforms.

    :param classes: to keep of every target set; None keeps all.
    :param image_shape: ``(C, H, W)`` that all images are brought into; None: see
        :func:`avalanche_cetl.scenarios.domains.common_shape`.
    :param how: ``"resize"`` or ``"pad"``.
    :param transforms: in training and in evaluation.
    :param several_heads: the n-th target has classes of its own.
    :raises ValueError: for another ``how``, or an ``image_shape`` that is none.
    """

    classes: Classes
    image_shape: Shape | None
    how: Fit
    transforms: tuple[Transform, Transform]
    several_heads: bool = False

    def __post_init__(self) -> None:
        check_choice("fit", self.how, get_args(Fit))
        shape = self.image_shape
        if shape is None:
            return
        whole = isinstance(shape, Sequence) and all(isinstance(size, int) for size in shape)
        if not whole or len(shape) != 3 or min(shape) < 1 or shape[0] > 4 >= shape[2]:
            raise ValueError(
                f"image_shape={shape!r} has to be (C, H, W), three numbers >= 1, such as "
                "(3, 32, 32)."
            )

    @property
    def transformed(self) -> bool:
        """Whether there are transforms, which may change an image in any way."""
        return any(t is not None for t in self.transforms)

    @property
    def keeps_pil(self) -> bool:
        """Whether pictures stay pictures, for a transform."""
        return self.transformed and self.image_shape is None

    def read(self, data: Any, classes: Classes, name: str) -> LabelledImages:
        """Read one set.

        :param data: as the user gave it.
        :param classes: to keep of it; None keeps all.
        :param name: of the argument, which every error begins with.
        """
        with _named(name):
            return choose_classes(read_images(data, self.keeps_pil), classes)

    def read_unlabelled(self, data: Any, name: str) -> LabelledImages:
        """Read a set of images alone."""
        with _named(name):
            return read_unlabelled(data, self.keeps_pil)

    def read_all(
        self, hidden: str = "", **data: Any
    ) -> tuple[list[LabelledImages], list[LabelledImages]]:
        """Read the sets of all experiences.

        :param hidden: name of the argument whose labels are not read, if there is one.
        :param data: training data and test data, by name of their arguments.
        :raises ValueError: when there are not as many test sets as training sets.
        """
        found = []
        for name, sets in data.items():
            several = _several(sets)
            names = [name] if several is not sets else [f"{name}[{i}]" for i in range(len(sets))]
            found.append(
                [
                    self.read_unlabelled(d, n) if name == hidden else self.read(d, self.classes, n)
                    for d, n in zip(several, names, strict=True)
                ]
            )
        if len(found[0]) != len(found[1]) or not found[0]:
            raise ValueError(
                f"{len(found[0])} training sets, but {len(found[1])} test sets: one of each makes "
                "an experience."
            )
        for train_set, test_set in zip(*found, strict=True):
            check_names([train_set, test_set], "training and test data", self.several_heads)
        if not self.several_heads:
            check_names([*found[0], *found[1]], "the targets")
        return found[0], found[1]

    def read_some(self, *, classes: Classes, **data: Any) -> dict[str, LabelledImages]:
        """Read the sets that are not None, by name of their stream."""
        return {
            name.removesuffix("_train"): self.read(part, classes, name)
            for name, part in data.items()
            if part is not None
        }

    def meet(
        self,
        trains: list[LabelledImages],
        tests: list[LabelledImages],
        others: dict[str, LabelledImages],
    ) -> None:
        """Bring all sets to one shape, in place."""
        for sets in self._untransformed(trains, tests, others):
            check_values(sets)
        everything = [*trains, *tests, *others.values()]
        shape = self.image_shape or common_shape(everything, trains[0])
        if shape is not None:
            trains[:] = [fit(data, shape, self.how) for data in trains]
            tests[:] = [fit(data, shape, self.how) for data in tests]
            for name, data in others.items():
                others[name] = fit(data, shape, self.how)
        for sets in self._untransformed(trains, tests, others):
            check_one_shape(sets)

    def _untransformed(
        self,
        trains: list[LabelledImages],
        tests: list[LabelledImages],
        others: dict[str, LabelledImages],
    ) -> list[dict[str, LabelledImages]]:
        """Return the sets that no transform changes in some mode, a dict by name for each mode."""
        read_in_both = {f"train {i}": data for i, data in enumerate(trains)} | others
        evaluated = {f"test {i}": data for i, data in enumerate(tests)}
        if not self.transformed:
            return [read_in_both | evaluated]
        both = [read_in_both] if None in self.transforms else []
        return [*both, evaluated] if self.transforms[1] is None else both

    def dataset(
        self, images: LabelledImages, domains: int | list[int], task: int
    ) -> TaskAwareSupervisedClassificationDataset:
        """Return one experience's data."""
        count = len(images)
        domain_labels = [domains] * count if isinstance(domains, int) else domains
        held = images.images
        pictures = not isinstance(held, Tensor) and any(not isinstance(i, Tensor) for i in held)
        train, clean = (
            None if t is None and not pictures else _ToTensor(t) for t in self.transforms
        )
        return TaskAwareSupervisedClassificationDataset(
            [images],
            data_attributes=[
                DataAttribute(images.targets, "targets"),
                DataAttribute(domain_labels, "domain_labels"),
                TaskLabels(ConstantSequence(task, count)),
            ],
            transform_groups=TransformGroups({"train": (train, None), "eval": (clean, None)}),
        )

    def labelled(
        self, images: LabelledImages, keep: Sequence[int], task: int
    ) -> TaskAwareSupervisedClassificationDataset:
        """Return the rows that keep their label; if that is all rows, they share their memory."""
        rows = images if len(keep) == len(images) else images.select(keep)
        return self.dataset(rows, TARGET_DOMAIN, task)

    def datasets(self, sets: list[LabelledImages], tasks: bool = False) -> list[Any]:
        """Return the target data of several experiences."""
        return [
            self.dataset(d, TARGET_DOMAIN, i if tasks else 0).eval() for i, d in enumerate(sets)
        ]

    def scenario(
        self,
        streams: dict[str, list[Any]],
        sources: dict[str, LabelledImages],
        named: list[LabelledImages],
    ) -> CETLScenario:
        """Return the benchmark.

        :param streams: the target's data of every experience, by name of the stream.
        :param sources: the source's data, likewise.
        :param named: sets of the same classes, of which the first with names has those of all.
        """
        for name, data in sources.items():
            rows = self.dataset(data, SOURCE_DOMAIN, 0)
            streams[name] = [rows.eval() if name.endswith("_test") else rows]
        names = next((d.classes for d in named if d.classes), None)
        if names is None and self.classes is not None:
            names = [str(index) for index in self.classes]
        made = make_scenario(streams, names)
        made.source_classes = sources["source"].classes if "source" in sources else None
        return made


class _ToTensor:
    """A transform, if there is one, followed by a conversion to floats ``(C, H, W)``.

    :raises ValueError: for results that are surely no image for a network: integers of more than
        8 bits, and bytes as floats that were not divided.
    """

    def __init__(self, transform: Transform):
        self.transform = transform

    def __call__(self, image: Any) -> Tensor:
        if self.transform is not None:
            image = self.transform(image)
        tensor = as_floats(image_tensor(image))
        check_range(tensor, "an image after its transform")
        return tensor


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors about a set begin with the name of the argument that it came as."""
    try:
        yield
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from problem
    except TypeError as problem:
        raise TypeError(f"{name}: {problem}") from problem


def _several(data: Any) -> list[Any]:
    """Return a list as it is, one set an experience, and any other data as one set."""
    return data if isinstance(data, list) and not is_pair(data) else [data]


def hide(images: LabelledImages, keep: Sequence[int]) -> LabelledImages:
    """Return the same images with the labels of some rows alone; the others are -1."""
    kept = set(keep)
    return images.relabel(
        [label if i in kept else UNLABELLED for i, label in enumerate(images.targets)]
    )
