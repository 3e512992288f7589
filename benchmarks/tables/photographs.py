"""Tables of photographs: labelled images beside S's features, strengths by validation accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor

from avalanche_cetl import Encoder
from benchmarks.data.sets import Data, features_of, read_data
from benchmarks.methods.job import TransferJob
from benchmarks.methods.plain import accuracy
from benchmarks.methods.sources import Source
from benchmarks.tables.board import Place, Table
from benchmarks.tables.rows import Row


class Photographs(Table):
    """A table whose rows train on labelled images, each on a data set of its own.

    :param source: makes S, for rows that do not bring their own.
    """

    def __init__(self, name: str, rows: dict[str, Row], budgets: Mapping[str, Any], source: Source):
        super().__init__(name, rows, budgets)
        self.source = source

    def job(self, place: Place, seed: int, strength: float) -> TransferJob:
        """Make what a row's method takes."""
        data = data_of(place)
        return TransferJob(
            budget=place.budget,
            seed=seed,
            strength=strength,
            where=place.where,
            train=data.train,
            features=held_features(place, "train"),
            pixels=data.pixels,
            encoder=encoder_of(place),
        )

    def score(self, place: Place, job: Any, network: Any) -> float:
        """Compute the accuracy on validation images, in per cent."""
        return _accuracy(place, network, "validation")

    def figures(self, place: Place, job: Any, network: Any) -> dict[str, Any]:
        """Compute the accuracy on test images, and say what was trained on what."""
        return {
            "accuracy": _accuracy(place, network, "test"),
            "parameters": sum(p.numel() for p in network.parameters()),
            "data": data_of(place).kind,
            "source": encoder_of(place).fingerprint(),
        }

    def ask(self, place: Place) -> None:
        """Compute S's features, so that they are stored before several processes need them."""
        held_features(place, "train")

    def more_settings(self, place: Place) -> dict[str, Any]:
        """Return the data set, where it is not CIFAR-10, and the number of mixed images."""
        found: dict[str, Any] = {}
        if place.the_row.mixed:
            found["mixed"] = place.the_row.mixed
        if place.data != "CIFAR-10":
            found["data"] = place.data
        return found


def data_of(place: Place) -> Data:
    """Read a row's data."""
    b = place.budget
    return read_data(
        place.data,
        place.root,
        b.per_class,
        b.validation_per_class,
        b.unlabelled(),
        place.the_row.mixed,
        b.test_per_class,
    )


@lru_cache(maxsize=4)
def encoder_of(place: Place) -> Encoder:
    """Make a row's S."""
    table: Any = place.the_table
    source: Source = place.the_row.source or table.source
    return source(place.budget, place.root, place.where)


@lru_cache(maxsize=4)
def held_features(place: Place, part: str) -> Tensor:
    """Return a row's features of S for a part of the data."""
    return features_of(data_of(place), part, encoder_of(place), place.where)


def _accuracy(place: Place, network: Any, part: str) -> float:
    images, labels = data_of(place).part(part)
    inputs = held_features(place, part) if place.the_row.reads_features else images
    return accuracy(network, inputs, labels)
