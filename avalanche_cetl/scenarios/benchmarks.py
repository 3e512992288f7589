"""Transfer, distillation and domain adaptation as Avalanche benchmarks, by one data rule.

Label -1 marks an unlabelled row; ``domain_labels`` is 0 for target rows and 1 for source
rows. CETL reconstructs rows of domain 0 and classifies rows with a label.

A set may be a pair ``(images, labels)`` of arrays or tensors, a map-style data set of
``(image, label)``, an AvalancheDataset, or the path of an image folder. It is read into memory
once (:func:`avalanche_cetl.scenarios.images.read_images`). A list of sets becomes a stream of as
many experiences.

Transforms work image by image and come before the conversion to tensors. PIL images reach them as
PIL images, but upright and without palette or transparency; those of a folder in RGB. With
``image_shape`` they reach them as tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche_cetl.common.labels import SOURCE_DOMAIN, TARGET_DOMAIN, UNLABELLED
from avalanche_cetl.scenarios.domains import Shape, check_known, check_labels, check_names
from avalanche_cetl.scenarios.images import LabelledImages
from avalanche_cetl.scenarios.labels import check_kept, choose_labelled
from avalanche_cetl.scenarios.plan import Classes, Fit, Plan, Transform, hide
from avalanche_cetl.scenarios.scenario import CETLScenario


def transfer_benchmark(
    target_train: Any,
    target_test: Any,
    *,
    source_train: Any = None,
    source_test: Any = None,
    labelled_fraction: float | None = None,
    labels_per_class: int | None = None,
    classes: Classes = None,
    image_shape: Shape | None = None,
    fit: Fit = "resize",
    task_labels: bool = False,
    seed: int = 0,
    train_transform: Transform = None,
    eval_transform: Transform = None,
) -> CETLScenario:
    """Return a benchmark for learning a target task, of which some rows have labels.

    Streams: ``train`` (target rows; hidden labels are -1 and nowhere in memory), ``test``
    (target), ``labelled`` (only the training rows with a label, all where none is hidden: what
    Naive, EWC and LwF train on), and, where source data is given, ``source`` and
    ``source_test``, which CETL never reads. A list of targets makes a stream of as many
    experiences: continual transfer.

    :param target_train: target training data, see the top of this file: arrays, a data set or the
        path of an image folder; or a list of these, one an experience.
    :param target_test: target test data, as many.
    :param source_train: labelled source data, for methods that need it.
    :param source_test: source test data, e.g. to measure forgetting.
    :param labelled_fraction: share of each class that keeps its label, in (0, 1].
    :param labels_per_class: or the exact number of rows in each class, >= 1, the same for all
        classes. Neither: all keep it. (Rows whose label is -1 in the data have none anyway.)
    :param classes: keep only these classes of every target set, by index or by name; the n-th
        becomes class n. ``"car|automobile"`` takes either name.
    :param image_shape: ``(C, H, W)`` that all images are brought into. Default: as they are,
        or, where sets differ, the first target's size, in colour if any set is.
    :param fit: ``"resize"`` (bilinear, antialiased) or ``"pad"`` (with zeros).
    :param task_labels: give the n-th experience the task label n instead of 0.
    :param seed: of the choice of labels; the same seed chooses the same rows.
    :param train_transform: applied to each training image.
    :param eval_transform: applied in evaluation.
    :return: an Avalanche benchmark with task labels and a classes timeline; ``.summary()``
        is a table of its contents, ``.classes`` the names of its classes where they are known.
    :raises ValueError: for empty sets (named, as in ``target_train[1]``), both kinds of fraction,
        no labels, one class, labels that are no class indices or do not start at 0, images of
        several shapes, images that cannot be read, values that are not finite, or bytes as floats
        that were not divided.
    :raises TypeError: for data of another kind, or for labels_per_class or labelled_fraction
        that is not one number.
    """
    check_kept(labels_per_class, labelled_fraction, least=1)
    plan = Plan(classes, image_shape, fit, (train_transform, eval_transform), task_labels)
    trains, tests = plan.read_all(target_train=target_train, target_test=target_test)
    sources = plan.read_some(source_train=source_train, source_test=source_test, classes=None)
    plan.meet(trains, tests, sources)
    check_labels(trains, "the target training data")
    check_known(tests, trains, "the target test data", all_labelled=True)
    if "source" in sources:
        check_labels([sources["source"]], "the source training data")
    train, labelled = [], []
    for number, target in enumerate(trains):
        keep = choose_labelled(
            target.targets, labels_per_class, labelled_fraction, seed, target.classes
        )
        _check_keeps(keep, number, trains)
        task = number if task_labels else 0
        train.append(plan.dataset(hide(target, keep), TARGET_DOMAIN, task))
        labelled.append(plan.labelled(target, keep, task))
    streams = {"train": train, "test": plan.datasets(tests, task_labels), "labelled": labelled}
    return plan.scenario(streams, sources, [*trains, *tests])


def distillation_benchmark(
    train: Any,
    test: Any,
    *,
    unlabelled: Any = None,
    labelled_fraction: float | None = None,
    labels_per_class: int | None = None,
    classes: Classes = None,
    image_shape: Shape | None = None,
    fit: Fit = "resize",
    seed: int = 0,
    train_transform: Transform = None,
    eval_transform: Transform = None,
) -> CETLScenario:
    """Return a benchmark for distillation: a teacher S and a student T2 on the same task.

    Streams: ``train``, ``test`` and ``labelled``, its rows with a label. Every row of
    ``train`` is of the target domain, so T2 learns from S's features of all of them, and from the
    labels of those that have one.

    :param train: training data, of the kinds that :func:`transfer_benchmark` takes.
    :param test: test data.
    :param unlabelled: further images of the same kind; their labels, if any, are not read.

    The other arguments are those of :func:`transfer_benchmark`.

    :return: an Avalanche benchmark.
    :raises ValueError: as :func:`transfer_benchmark` does.
    :raises TypeError: for data of another kind.
    """
    check_kept(labels_per_class, labelled_fraction, least=1)
    plan = Plan(classes, image_shape, fit, (train_transform, eval_transform))
    trains, tests = plan.read_all(train=train, test=test)
    more = {}
    if unlabelled is not None:
        more["unlabelled"] = plan.read_unlabelled(unlabelled, "unlabelled")
    plan.meet(trains, tests, more)
    check_labels(trains, "the training data")
    check_known(tests, trains, "the test data", all_labelled=True)
    known, labelled = [], []
    for data in trains:
        keep = choose_labelled(
            data.targets, labels_per_class, labelled_fraction, seed, data.classes
        )
        rows = hide(data, keep)
        if more:
            rows = rows.join(more["unlabelled"])
        known.append(plan.dataset(rows, TARGET_DOMAIN, 0))
        labelled.append(plan.labelled(data, keep, 0))
    streams = {"train": known, "test": plan.datasets(tests), "labelled": labelled}
    return plan.scenario(streams, {}, [*trains, *tests])


def adaptation_benchmark(
    source_train: Any,
    target_train: Any,
    target_test: Any,
    *,
    labels_per_class: int | None = None,
    transductive: bool = False,
    classes: Classes = None,
    image_shape: Shape | None = None,
    fit: Fit = "resize",
    task_labels: bool = False,
    source_test: Any = None,
    seed: int = 0,
    train_transform: Transform = None,
    eval_transform: Transform = None,
) -> CETLScenario:
    """Return a benchmark for domain adaptation: labelled source rows, unlabelled target rows.

    With ``source_train=None`` there are no source rows: adaptation without source data, where S's
    outputs and the target's images are all there is. Training then needs plugins that teach
    classes without a label: ``SoftTargets(rows="target")`` from an S that has the same classes,
    ``InformationMaximization``, ``preset="best"``.

    The ``train`` stream holds both, distinguished by ``domain_labels`` (0 target, 1 source);
    ``test`` is the target's. ``source`` and ``source_test`` hold the source rows alone, so
    that source-only, Naive, EWC and LwF run on the same object; ``labelled`` holds the
    target rows with a label, if there are any. A list of targets makes a stream of as many
    experiences, each with the source rows: continual adaptation.

    :param source_train: labelled source data (see :func:`transfer_benchmark` for kinds), or None.
    :param target_train: target training data, or images alone; its labels are not read, but with
        ``labels_per_class``, of which the others are hidden, and with ``classes``.
    :param target_test: target test data.
    :param labels_per_class: number of target rows that keep their label in each class, >= 0, the
        same for all classes; an experience without any label is refused. Default: 0, unsupervised.
    :param transductive: also put the test images, without labels, into training, as some
        papers do.
    :param classes: keep only these classes of every set, by index or by name.
    :param source_test: source test data.

    The other arguments are those of :func:`transfer_benchmark`.

    :return: an Avalanche benchmark, like that of :func:`transfer_benchmark`.
    :raises ValueError: for empty sets, missing classes, one class, labels that do not start at
        0, or images of several shapes.
    :raises TypeError: for data of another kind.
    """
    check_kept(labels_per_class)
    kept = 0 if labels_per_class is None else labels_per_class
    plan = Plan(classes, image_shape, fit, (train_transform, eval_transform))
    hidden = "target_train" if not kept and classes is None else ""
    trains, tests = plan.read_all(hidden, target_train=target_train, target_test=target_test)
    sources = plan.read_some(source_train=source_train, source_test=source_test, classes=classes)
    plan.meet(trains, tests, sources)
    source = sources.get("source")
    known = tests if source is None else [source]
    where = "the target test data" if source is None else "the source training data"
    check_names([*sources.values(), *trains, *tests], "the data")
    if source is not None:
        check_labels([source], "the source training data")
    check_known(list(sources.values()), known, "the source data", all_labelled=True, where=where)
    check_known(trains, known, "the target training data", all_labelled=False, where=where)
    check_known(tests, known, "the target test data", all_labelled=True, where=where)
    train, labelled = [], []
    for number, (target, test) in enumerate(zip(trains, tests, strict=True)):
        keep = choose_labelled(target.targets, kept, None, seed, target.classes)
        if kept:
            _check_keeps(keep, number, trains)
        rows = hide(target, keep)
        if transductive:
            rows = rows.join(test.relabel([UNLABELLED] * len(test)))
        task = number if task_labels else 0
        domains = [TARGET_DOMAIN] * len(rows)
        if source is not None:
            domains += [SOURCE_DOMAIN] * len(source)
            rows = rows.join(source)
        train.append(plan.dataset(rows, domains, task))
        if keep:
            labelled.append(plan.labelled(target, keep, task))
    streams = {"train": train, "test": plan.datasets(tests, task_labels)}
    if labelled:
        streams["labelled"] = labelled
    return plan.scenario(streams, sources, [*known, *trains, *tests])


def _check_keeps(keep: Sequence[int], number: int, trains: Sequence[LabelledImages]) -> None:
    """Raise ValueError where no row of an experience keeps a label."""
    if not keep:
        name = "target_train" if len(trains) == 1 else f"target_train[{number}]"
        raise ValueError(
            f"{name} has no label (all are -1), and {len(trains[number])} images; give it some, or "
            "leave it out."
        )
