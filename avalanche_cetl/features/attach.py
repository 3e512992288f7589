"""Source features beside the images: S runs once, before training.

The features are kept on disk, under a key made of the encoder's fingerprint and of the images as
the encoder reads them. Every image is read once to compute the key, so features are never taken
for other data, transforms or seeds than their own. ``dataset.source_origin`` keeps which network
they are of, so that a model with another source network is refused before it trains.

An image and its features always belong to the same view. With random training transforms each
image has a fixed number of views, drawn once by a seed; training takes one of them at random in
each pass. Streams called ``test`` or ``..._test`` have the evaluation transform alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks.scenarios import CLScenario, EagerCLStream
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from avalanche.benchmarks.utils.transforms import MultiParamTransform
from torch.utils.data import Dataset

from avalanche_cetl.common.labels import FEATURES_INDEX, SOURCE_FEATURES, SOURCE_ORIGIN
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.encoders.base import Encoder, check_frozen
from avalanche_cetl.encoders.origin import Origin
from avalanche_cetl.encoders.precomputed import PrecomputedEncoder
from avalanche_cetl.features.extraction import Extraction, StoredType
from avalanche_cetl.features.shards import StoredRows
from avalanche_cetl.features.store import default_cache_dir, stored_features
from avalanche_cetl.features.views import SeededView
from avalanche_cetl.scenarios.streams import benchmark_of, check_filled, check_list, experience_of


def with_source_features(
    benchmark: CLScenario,
    encoder: Encoder,
    cache_dir: str | Path | None = None,
    views: int = 1,
    dtype: StoredType = "float16",
    *,
    streams: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> CLScenario:
    """Return the benchmark with S's features beside every image; S then never runs in training.

    Items become ``(image, label, features, ..., task label)``, and ``dataset.source_features``
    holds the features of the clean images (evaluation transform), one row each. They are computed
    once for the same images and the same encoder, and kept on disk: S runs once for an image that
    is in several streams or experiences, such as a target row with a label.

    Where torch.distributed is initialised, all processes call this together, each computes
    its own shards, and the store is the same as that of one process.

    :param benchmark: any Avalanche benchmark whose transforms return tensors of one shape.
    :param encoder: S. A :class:`PrecomputedEncoder` brings its own features: nothing is
        computed or stored, and training transforms apply to the images alone.
    :param cache_dir: folder of the store (``~`` is the home folder); default ``$CETL_CACHE``, or
        ``avalanche-cetl/features`` in the user's cache folder.
    :param views: views of every training image, >= 1.
    :param dtype: ``"float16"`` or ``"float32"``, as stored and as given in batches;
        precomputed features keep their own.
    :param streams: names of the streams to add features to; default: all.
    :param seed: of the views.
    :param batch_size: images of one forward pass of S.
    :param num_workers: processes that load images.
    :param device: where S runs meanwhile; default: where it is.
    :param progress: show a bar with images per second; where there is no terminal, a line on
        standard error every half minute.
    :return: a new benchmark; the given one is unchanged.
    :raises ValueError: for an encoder that is not frozen, arguments out of range, unknown
        streams, an experience without an image, precomputed features whose rows do not match,
        images of several shapes, or features that are not finite.
    :raises TypeError: for an encoder that is no :class:`Encoder`, streams that are no list, or
        images that are no tensors.
    :raises FeatureStoreError: when the folder cannot be written, or the disk is full.
    """
    if views < 1:
        raise ValueError(f"views={views} has to be >= 1.")
    if not isinstance(encoder, Encoder):
        raise TypeError(f"encoder has to be an Encoder, got {type(encoder).__name__}.")
    check_frozen(encoder)
    encoder.eval()  # one that has no parameters need not have been frozen
    chosen = _chosen_streams(benchmark, encoder, streams)
    check_filled(benchmark, chosen)
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    extraction = Extraction(batch_size, num_workers, device, progress)
    processes, stored = Processes.started(), StoredRows()
    origin = Origin(encoder.fingerprint())
    if not isinstance(encoder, PrecomputedEncoder):
        first = next(one.dataset.eval() for name in chosen for one in benchmark.streams[name])
        origin = Origin.of(encoder, *SeededView(first, seed, 0).kind(), again=True)

    def rows(dataset: Any, view: int) -> tuple[SeededView, Any]:
        seen = SeededView(dataset, seed, view)
        how = dtype, extraction, processes, stored, origin
        return seen, stored_features(folder, encoder, seen, *how)

    made = []
    for name, stream in benchmark.streams.items():
        experiences = []
        for number, experience in enumerate(stream):
            dataset = experience.dataset
            if name in chosen and isinstance(encoder, PrecomputedEncoder):
                given = _given_rows(encoder, name, number, len(dataset), views)
                groups = [[(dataset.train(), given)], [(dataset.eval(), given)]]
                dataset = _with_rows(dataset, groups[0], groups[1], origin)
            elif name in chosen:
                clean = rows(dataset.eval(), 0)
                held_out = name == "test" or name.endswith("_test")
                drawn = [] if held_out else [rows(dataset.train(), v) for v in range(views)]
                dataset = _with_rows(dataset, drawn or [clean], [clean], origin)
            experiences.append(experience_of(experience, dataset))
        made.append(EagerCLStream(name, experiences))
    return benchmark_of(benchmark, made)


def features_are_of(dataset: Any, encoder: Encoder) -> bool:
    """Return whether S's features in a data set are those of this encoder.

    True where the data set has no features, or does not know the network they are of.
    """
    origins = getattr(dataset, SOURCE_ORIGIN, None)
    if origins is None or not len(origins):
        return True
    return all(origin.is_of(encoder) for origin in origins.uniques)


def check_source(dataset: Any, encoder: Encoder, where: str) -> None:
    """Raise ValueError unless S's features in a data set are those of this encoder.

    :param dataset: of an experience.
    :param encoder: S.
    :param where: names the data in the error.
    """
    if features_are_of(dataset, encoder):
        return
    width = len(torch.as_tensor(dataset[0][FEATURES_INDEX]))
    raise ValueError(
        f"{where} comes with stored source features (N, {width}) of another network than the "
        f"model's source, a {type(encoder).__name__} with features (N, {encoder.dim}): weights, "
        "layer or settings differ. Store the features with this encoder, "
        "with_source_features(benchmark, model.source), or build the model with the encoder that "
        "they were stored with."
    )


def _chosen_streams(
    benchmark: CLScenario, encoder: Encoder, streams: Sequence[str] | None
) -> list[str]:
    names = list(benchmark.streams)
    check_list(streams)
    if streams is None:
        streams = list(encoder.streams) if isinstance(encoder, PrecomputedEncoder) else names
    unknown = [name for name in streams if name not in names]
    if unknown:
        raise ValueError(f"streams {unknown} are not in the benchmark, which has {names}.")
    return list(streams)


def _given_rows(
    encoder: PrecomputedEncoder, stream: str, experience: int, rows: int, views: int
) -> Any:
    if views != 1:
        raise ValueError(f"views={views}: precomputed features have one view an image.")
    given = encoder.streams.get(stream, [])
    if experience >= len(given):
        raise ValueError(
            f"no precomputed features for experience {experience} of the stream {stream!r}; "
            f"there are {len(given)}."
        )
    if len(given[experience]) != rows:
        raise ValueError(
            f"the precomputed features of the stream {stream!r}, experience {experience}, have "
            f"{len(given[experience])} rows, but its data set has {rows}."
        )
    return given[experience]


class _RowNumbers(Dataset[Any]):
    """Row numbers and labels; the transform adds the images, because it chooses the view."""

    def __init__(self, targets: Sequence[int]):
        self.targets = [int(target) for target in targets]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(index), self.targets[index]


class _WithFeatures(MultiParamTransform):
    """A transform from a row number to image, label and features of one of the row's views.

    :param views: per view its images and its features.
    :param attributes: how many data attributes end an item; they are added again later.
    """

    def __init__(self, views: Sequence[tuple[Any, Any]], attributes: int):
        self.views, self.attributes = list(views), attributes

    def __call__(self, *item: Any) -> list[Any]:
        row = item[0]
        # No draw where there is no choice: the same random numbers as without features.
        view = int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0
        images, features = self.views[view]
        found = list(images[row])
        found = found[: len(found) - self.attributes]
        return [*found[:FEATURES_INDEX], features[row], *found[FEATURES_INDEX:]]

    def flat_transforms(self, position: int) -> list[Any]:
        """Return no transforms: Avalanche asks for those that act on one part of an item."""
        return []


def _with_rows(dataset: Any, train: Sequence[Any], clean: Sequence[Any], origin: Origin) -> Any:
    attributes = list(dataset._data_attributes.values())
    in_items = sum(attribute.use_in_getitem for attribute in attributes)
    groups = {
        "train": _WithFeatures(train, in_items),
        "eval": _WithFeatures(clean, in_items),
    }
    made = type(dataset)(
        [_RowNumbers(dataset.targets)],
        data_attributes=[
            *(a for a in attributes if a.name not in (SOURCE_FEATURES, SOURCE_ORIGIN)),
            DataAttribute(_Rows(clean[0][1]), SOURCE_FEATURES),
            DataAttribute(ConstantSequence(origin, len(dataset)), SOURCE_ORIGIN),
        ],
        transform_groups=TransformGroups(groups),
        collate_fn=dataset.collate_fn,
    )
    whose = getattr(dataset._flat_data, "_transform_groups", None)
    return made.eval() if getattr(whose, "current_group", None) == "eval" else made


class _Rows(Sequence[Any]):
    """Rows of a tensor or of the store as a sequence, which Avalanche does not turn into a list."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]
