"""Mixed images beside the target's own: more unlabelled rows, made of the given ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks.scenarios import CLScenario, EagerCLStream
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from torch import Tensor
from torchvision.transforms import v2

from avalanche_cetl.common.labels import SOURCE_FEATURES, TARGET_DOMAIN, UNLABELLED
from avalanche_cetl.common.seeds import seeded
from avalanche_cetl.scenarios.images import LabelledImages
from avalanche_cetl.scenarios.streams import benchmark_of, check_filled, check_list, experience_of

KINDS = {"cutmix": v2.CutMix, "mixup": v2.MixUp}


def mixed_images(
    images: Tensor, count: int, seed: int | str = 0, kinds: Sequence[str] = ("cutmix", "mixup")
) -> Tensor:
    """Return mixtures of pairs of images, by torchvision's transforms.

    The n-th mixture is made of the n-th image (from the first again, where there are fewer than
    ``count``) and of another one drawn at random. Kinds are taken in turn, and every pair has
    random numbers of its own.

    :param images: ``(N, C, H, W)`` floats, N >= 2.
    :param count: how many to make, >= 0.
    :param seed: of partners and numbers; the same seed gives the same images.
    :param kinds: ``"cutmix"`` (Yun et al. 2019) pastes a box of the other image, whose share of
        the area is uniform in [0, 1] before it is cut off at the border; ``"mixup"`` (Zhang et al.
        2018) is a weighted mean, whose weight is uniform in [0, 1].
    :return: ``(count, C, H, W)``.
    :raises ValueError: for fewer than two images, a negative count, or unknown kinds.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or isinstance(kinds, str):
        raise ValueError(f"kinds={kinds!r} has to be a list of some of {list(KINDS)}.")
    if images.dim() != 4 or len(images) < 2 or not images.is_floating_point():
        raise ValueError(
            f"images of shape {tuple(images.shape)}, {images.dtype}: two or more float images "
            "(N, C, H, W) are needed."
        )
    if count < 0:
        raise ValueError(f"count={count} has to be >= 0.")
    mixers = [KINDS[kind](num_classes=2) for kind in kinds]
    which = torch.tensor([0, 1])
    made = images.new_empty(count, *images.shape[1:])
    with seeded(f"mixed images {seed}"):
        for row in range(count):
            first = row % len(images)
            other = (first + int(torch.randint(1, len(images), ()))) % len(images)
            pair = images[[first, other]]
            made[row] = mixers[row % len(mixers)](pair, which)[0][0]
    return made


def with_mixed_images(
    benchmark: CLScenario,
    per_image: int = 4,
    *,
    seed: int = 0,
    kinds: Sequence[str] = ("cutmix", "mixup"),
    streams: Sequence[str] = ("train",),
) -> CLScenario:
    """Return the benchmark with mixed target images as further unlabelled rows.

    Stages 1 and 2 read them like any unlabelled target image. So T2 also learns from S's features
    of mixtures, which no label describes. The mixtures are made of the target's own rows (domain 0)
    after their evaluation transform, and are kept in memory; training transforms do not change
    them (``CETLStrategy(augment=...)`` does). To store S's features, call
    :func:`with_source_features` afterwards.

    :param benchmark: any Avalanche benchmark whose transforms return float tensors of one shape.
    :param per_image: mixed images for every target image of an experience, >= 1.
    :param seed: of the mixtures.
    :param kinds: see :func:`mixed_images`; taken in turn.
    :param streams: names of the training streams to extend.
    :return: a new benchmark; the given one is unchanged. Where it has no stream ``labelled`` and
        all target rows of the first of ``streams`` have a label, it gets one of the rows as they
        were, for strategies that cannot read unlabelled rows.
    :raises ValueError: for arguments out of range, unknown streams, an experience with fewer than
        two target images, or data that has S's features already.
    :raises TypeError: for streams that are no list.
    """
    if not isinstance(per_image, int) or per_image < 1:
        raise ValueError(f"per_image={per_image} has to be a whole number >= 1.")
    check_list(streams)
    own = ("labelled", "test")
    allowed = [n for n in benchmark.streams if n not in own and not n.endswith("_test")]
    if not streams or any(name not in allowed for name in streams):
        raise ValueError(f"streams={list(streams)} has to be one or more of {allowed}.")
    check_filled(benchmark, streams)
    made = []
    for name, stream in benchmark.streams.items():
        experiences = []
        for number, experience in enumerate(stream):
            dataset = experience.dataset
            if name in streams:
                where = f"experience {number} of the stream {name!r}"
                dataset = _extended(dataset, per_image, f"{seed} {name} {number}", kinds, where)
            experiences.append(experience_of(experience, dataset))
        made.append(EagerCLStream(name, experiences))
    first = benchmark.streams[streams[0]]
    if "labelled" not in benchmark.streams and all(_all_labelled(e.dataset) for e in first):
        same = [experience_of(experience, experience.dataset) for experience in first]
        made.append(EagerCLStream("labelled", same))
    return benchmark_of(benchmark, made)


def _target_rows(dataset: Any) -> list[int]:
    domains = getattr(dataset, "domain_labels", None)
    rows = range(len(dataset))
    return list(rows) if domains is None else [r for r in rows if int(domains[r]) == TARGET_DOMAIN]


def _all_labelled(dataset: Any) -> bool:
    """Whether a data set holds target rows alone, all with a label."""
    rows = _target_rows(dataset)
    return len(rows) == len(dataset) and all(int(t) != UNLABELLED for t in dataset.targets)


def _extended(dataset: Any, per_image: int, seed: str, kinds: Sequence[str], where: str) -> Any:
    if hasattr(dataset, SOURCE_FEATURES):
        raise ValueError(
            "the benchmark has S's features, which mixed images do not have: call "
            "with_mixed_images before with_source_features."
        )
    rows = _target_rows(dataset)
    if len(rows) < 2:
        raise ValueError(
            f"{where} has {len(rows)} target images (rows of domain 0): a mixture needs two."
        )
    clean = dataset.eval()
    images = [clean[row][0] for row in rows]
    shapes = {tuple(image.shape) if isinstance(image, Tensor) else None for image in images}
    if len(shapes) != 1 or None in shapes:
        raise ValueError(
            f"{where}: mixed images need target images that are tensors of one shape: give "
            "image_shape=, or a transform."
        )
    count = per_image * len(rows)
    made = mixed_images(torch.stack(images), count, seed, kinds)
    origin = [rows[i % len(rows)] for i in range(count)]
    attributes = []
    for attribute in dataset._data_attributes.values():
        values = [attribute[row] for row in origin]
        if attribute.name == "targets":
            values = [UNLABELLED] * count
        attributes.append(
            DataAttribute(values, attribute.name, use_in_getitem=attribute.use_in_getitem)
        )
    more = TaskAwareSupervisedClassificationDataset(
        [LabelledImages(made, [UNLABELLED] * count)],
        data_attributes=attributes,
        collate_fn=dataset.collate_fn,
    )
    return dataset.concat(more)
