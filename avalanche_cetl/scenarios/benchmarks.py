"""Transfer and domain adaptation as Avalanche benchmarks, by one data rule.

Label -1 marks an unlabelled row; ``domain_labels`` is 0 for target rows and 1 for source
rows. CETL reconstructs rows of domain 0 and classifies rows with a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.scenarios import CLScenario
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.benchmarks.utils.transform_groups import TransformGroups

from avalanche_cetl.scenarios.images import (
    UNLABELLED,
    LabelledImages,
    choose_labelled,
    read_images,
)

Transform = Callable[[Any], Any] | None


def transfer_benchmark(
    target_train: Any,
    target_test: Any,
    *,
    source_train: Any = None,
    source_test: Any = None,
    labelled_fraction: float | None = None,
    labels_per_class: int | None = None,
    seed: int = 0,
    train_transform: Transform = None,
    eval_transform: Transform = None,
) -> CLScenario:
    """Make a benchmark for learning a target task, of which some rows have labels.

    Streams of one experience each: ``train`` (target rows; hidden labels are -1 and nowhere
    in memory), ``test`` (target), ``labelled`` (only the training rows with a label, where
    some are hidden: what Naive, EWC and LwF train on), and, where source data is given,
    ``source`` and ``source_test``, which CETL never reads.

    :param target_train: target training data: a pair ``(images, labels)`` of arrays or
        tensors, or a map-style data set of ``(image, label)``. Read into memory once.
    :param target_test: target test data.
    :param source_train: labelled source data, for methods that want it.
    :param source_test: source test data, e.g. to measure forgetting.
    :param labelled_fraction: share of each class that keeps its label, in [0, 1].
    :param labels_per_class: or the exact number. Neither: all keep it.
    :param seed: of the choice; the same seed chooses the same rows.
    :param train_transform: applied to training images, image by image.
    :param eval_transform: applied in evaluation.
    :return: an Avalanche benchmark with task labels (all 0) and a classes timeline.
    :raises ValueError: for empty sets, both kinds of fraction, or images of several shapes.
    :raises TypeError: for data of another kind.
    """
    transforms = (train_transform, eval_transform)
    target = _read(target_train, transforms)
    keep = choose_labelled(target.targets, labels_per_class, labelled_fraction, seed)
    train = _hide(target, keep)
    streams = {"train": _dataset(train, 0, transforms), "test": _test(target_test, transforms)}
    if 0 < len(keep) < len(target):
        streams["labelled"] = _dataset(target.select(keep), 0, transforms)
    streams |= _source_streams(source_train, source_test, transforms)
    return _benchmark(streams)


def adaptation_benchmark(
    source_train: Any,
    target_train: Any,
    target_test: Any,
    *,
    labels_per_class: int = 0,
    transductive: bool = False,
    classes: Sequence[int] | None = None,
    source_test: Any = None,
    seed: int = 0,
    train_transform: Transform = None,
    eval_transform: Transform = None,
) -> CLScenario:
    """Make a benchmark for domain adaptation: labelled source rows, unlabelled target rows.

    The ``train`` stream holds both, told apart by ``domain_labels`` (0 target, 1 source);
    ``test`` is the target's. ``source`` and ``source_test`` hold the source rows alone, so
    that source-only, Naive, EWC and LwF run on the same object; ``labelled`` holds the
    target rows with a label, if there are any.

    :param source_train: labelled source data (see :func:`transfer_benchmark` for kinds).
    :param target_train: target training data; its labels are hidden but for the following.
    :param target_test: target test data.
    :param labels_per_class: labels that target rows keep, class by class; 0: unsupervised.
    :param transductive: also put the test images, without labels, into training, as some
        papers do.
    :param classes: keep only these classes of every set; the n-th becomes class n.
    :param source_test: source test data.
    :param seed: of the choice of labelled rows.
    :param train_transform: applied to training images.
    :param eval_transform: applied in evaluation.
    :return: an Avalanche benchmark with task labels (all 0) and a classes timeline.
    :raises ValueError: for empty sets, missing classes, or images of several shapes.
    :raises TypeError: for data of another kind.
    """
    transforms = (train_transform, eval_transform)
    source, target, test = (
        _subset(_read(data, transforms), classes)
        for data in (source_train, target_train, target_test)
    )
    keep = choose_labelled(target.targets, labels_per_class, None, seed)
    rows = _hide(target, keep)
    if transductive:
        rows = rows.join(test.relabel([UNLABELLED] * len(test)))
    both = rows.join(source)
    domains = [0] * len(rows) + [1] * len(source)
    streams = {"train": _dataset(both, domains, transforms), "test": _dataset(test, 0, transforms)}
    if keep:
        streams["labelled"] = _dataset(target.select(keep), 0, transforms)
    streams |= _source_streams(
        source,
        _subset(_read(source_test, transforms), classes) if source_test else None,
        transforms,
    )
    return _benchmark(streams)


def _read(data: Any, transforms: tuple[Transform, Transform]) -> LabelledImages:
    return read_images(data, keep_pil=any(t is not None for t in transforms))


def _test(data: Any, transforms: tuple[Transform, Transform]) -> Any:
    return _dataset(_read(data, transforms), 0, transforms)


def _source_streams(train: Any, test: Any, transforms: tuple[Transform, Transform]) -> dict:
    streams = {}
    if train is not None:
        streams["source"] = _dataset(_read(train, transforms), 1, transforms)
    if test is not None:
        streams["source_test"] = _dataset(_read(test, transforms), 1, transforms)
    return streams


def _hide(images: LabelledImages, keep: Sequence[int]) -> LabelledImages:
    kept = set(keep)
    return images.relabel(
        [label if i in kept else UNLABELLED for i, label in enumerate(images.targets)]
    )


def _subset(images: LabelledImages, classes: Sequence[int] | None) -> LabelledImages:
    if classes is None:
        return images
    order = {int(label): new for new, label in enumerate(classes)}
    missing = order.keys() - set(images.targets)
    if missing:
        raise ValueError(f"classes {sorted(missing)} do not occur in the data.")
    rows = [i for i, label in enumerate(images.targets) if label in order]
    chosen = images.select(rows)
    return chosen.relabel([order[label] for label in chosen.targets])


def _dataset(
    images: LabelledImages, domains: int | list[int], transforms: tuple[Transform, Transform]
) -> TaskAwareSupervisedClassificationDataset:
    count = len(images)
    domain_labels = [domains] * count if isinstance(domains, int) else domains
    return TaskAwareSupervisedClassificationDataset(
        [images],
        data_attributes=[
            DataAttribute(images.targets, "targets"),
            DataAttribute(domain_labels, "domain_labels"),
            TaskLabels(ConstantSequence(0, count)),
        ],
        transform_groups=TransformGroups(
            {"train": (transforms[0], None), "eval": (transforms[1], None)}
        ),
    )


def _benchmark(streams: dict[str, Any]) -> CLScenario:
    benchmark = with_classes_timeline(
        with_task_labels(benchmark_from_datasets(**{name: [d] for name, d in streams.items()}))
    )
    for stream in benchmark.streams.values():
        for experience in stream:
            # -1 says that a label is unknown; it is no class.
            experience.classes_in_this_experience = experience.classes_in_this_experience - {
                UNLABELLED
            }
            experience.classes_seen_so_far = experience.classes_seen_so_far - {UNLABELLED}
    return benchmark
