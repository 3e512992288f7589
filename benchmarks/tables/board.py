"""Runs the rows of a table of photographs: strengths on validation images, then the test, once.

A table's module has ``ROWS``, ``BUDGETS`` and ``source_of(row, budget, root, where)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from avalanche_cetl.encoders import Encoder
from avalanche_cetl.training.presets import parse_preset
from benchmarks.data.sets import Data, features_of, read_data
from benchmarks.jobs import run_all
from benchmarks.records import Run, results, run_once
from benchmarks.tables.transfer import (
    Budget,
    Job,
    accuracy,
    in_half_the_rounds,
)
from benchmarks.where import HERE, Where

TUNING_SEED = 100
SCALES = ("smoke", "cpu", "full")
#: What says that a data set is not on disk, or that weights cannot be downloaded.
NOT_THERE = (FileNotFoundError, URLError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Row:
    """A method: how it trains, and the strengths that it may choose from.

    :ivar train: ``(job, strength) -> network``.
    :ivar reads_features: whether the network reads S's features in place of images.
    :ivar tuned_as: the row whose strength it takes; None: it chooses.
    :ivar scales: where it is run.
    :ivar mixed: unlabelled mixed images that it reads for every training image; its rounds have
        two passes over the labels, and are half as many.
    :ivar data: the data set.
    :ivar changes: values of the budget that differ from the table's, by name.
    :ivar preset: of the strategy.
    """

    train: Callable[[Job, float], nn.Module]
    strengths: tuple[float, ...] = (0.0,)
    reads_features: bool = False
    tuned_as: str | None = None
    scales: tuple[str, ...] = SCALES
    mixed: int = 0
    data: str = "CIFAR-10"
    changes: tuple[tuple[str, Any], ...] = ()
    preset: str | None = None


@dataclass(frozen=True)
class Place:
    """A row of a table at a scale, where its data are, and where it is computed."""

    table: str
    scale: str
    root: str
    row: str
    where: Where = HERE

    @property
    def module(self) -> Any:
        """The table's."""
        return import_module(f"benchmarks.tables.{self.table}")

    @property
    def the_row(self) -> Row:
        """The row itself."""
        found: Row = self.module.ROWS[self.row]
        return found

    @property
    def budget(self) -> Budget:
        """What it may spend."""
        row = self.the_row
        found: Budget = replace(self.module.BUDGETS[self.scale], **dict(row.changes))
        return in_half_the_rounds(found) if row.mixed else found

    def data(self) -> Data:
        """Read its data."""
        row, b = self.the_row, self.budget
        return read_data(
            row.data,
            self.root,
            b.per_class,
            b.validation_per_class,
            b.unlabelled(),
            row.mixed,
            b.test_per_class,
        )

    def settings(self) -> dict[str, Any]:
        """Give what its result depends on, but for the strength."""
        row = self.the_row
        return (
            asdict(self.budget)
            | ({"mixed": row.mixed} if row.mixed else {})
            | ({"data": row.data} if row.data != "CIFAR-10" else {})
            | ({"preset": parse_preset(row.preset).describe()} if row.preset else {})
        )


@lru_cache(maxsize=4)
def held_features(place: Place, part: str) -> Tensor:
    """Give a row's features of S for a part of the data."""
    return features_of(place.data(), part, encoder_of(place), place.where)


@lru_cache(maxsize=4)
def encoder_of(place: Place) -> Encoder:
    """Give a row's S."""
    found: Encoder = place.module.source_of(place.row, place.budget, place.root, place.where)
    return found


def job_of(place: Place, seed: int) -> Job:
    """Give what a row's method reads."""
    data = place.data()
    features, encoder = held_features(place, "train"), encoder_of(place)
    return Job(
        data.train, features, place.budget, seed, data.pixels, data.classes, encoder, place.where
    )


def _fit(place: Place, seed: int, strength: float, part: str) -> dict[str, Any]:
    """Train, and read one of the held-out sets."""
    network = place.the_row.train(job_of(place, seed), strength)
    data = place.data()
    held_out = held_features(place, part) if place.the_row.reads_features else None
    return {
        "accuracy": accuracy(network, data.part(part), held_out),
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": data.kind,
        "source": encoder_of(place).fingerprint(),
    }


def tune(place: Place) -> str:
    """Choose a row's strength by accuracy on the validation images."""
    strengths = place.the_row.strengths

    def job() -> dict[str, Any]:
        scores = {
            strength: _fit(place, TUNING_SEED, strength, "validation")["accuracy"]
            for strength in strengths
        }
        best = max(scores, key=lambda strength: scores[strength])
        return {"chosen": best, "scores": {str(k): v for k, v in scores.items()}}

    settings = place.settings() | {"strengths": strengths}
    name = f"{place.row} (tuning)"
    run = Run(place.table, place.scale, name, TUNING_SEED)
    found = run_once(run, settings, job, place.where)
    return f"{place.row}: strength {found['figures']['chosen']}, of {found['figures']['scores']}"


def one(place: Place, seed: int) -> str:
    """Train a row with a seed, its strength chosen before; read the test set once."""
    row = place.the_row
    strength = row.strengths[0]
    if len(row.strengths) > 1:
        tuned = results(place.table, place.scale)[f"{row.tuned_as or place.row} (tuning)"]
        strength = tuned[TUNING_SEED]["figures"]["chosen"]
    settings = place.settings() | {"strength": strength}
    run = Run(place.table, place.scale, place.row, seed)
    found = run_once(run, settings, lambda: _fit(place, seed, strength, "test"), place.where)
    figures = found["figures"]
    return f"{place.row}, seed {seed}: {figures['accuracy']:.2f} %"


def those_there(names: list[str], ask: Callable[[str], Any], required: bool = False) -> list[str]:
    """Return the names whose data and weights can be had; say of the others that they are not run.

    :param ask: raises when something is missing.
    :param required: whether every one of them has to be there.
    :raises OSError: what ``ask`` raised, when one is required, or there is none.
    """
    found, missing = [], None
    for name in names:
        try:
            ask(name)
        except NOT_THERE as problem:
            if required:
                raise
            print(f"{name}: not run. {problem}")
            missing = problem
        else:
            found.append(name)
    if missing is not None and not found:
        raise missing
    return found


def run(
    table: str,
    scale: str,
    root: str,
    seeds: int,
    rows: list[str] | None = None,
    processes: int = 1,
    device: str = "cpu",
) -> None:
    """Run what is missing, seed by seed; all rows by default.

    A row whose data or whose source's weights are not to be had stays as it is, "not run".

    :raises OSError: when such a row was asked for by name, or there is no other.
    """
    module = import_module(f"benchmarks.tables.{table}")
    where = Where.of(scale, device)
    chosen = [row for row in rows or module.ROWS if scale in module.ROWS[row].scales]

    def ask(row: str) -> None:  # and features are in the store before several processes need them
        held_features(Place(table, scale, root, row, where), "train")

    there = those_there(chosen, ask, required=bool(rows))
    places = [Place(table, scale, root, row, where) for row in there]
    tuned = dict.fromkeys(
        place.the_row.tuned_as or place.row for place in places if len(place.the_row.strengths) > 1
    )
    run_all(tune, [(Place(table, scale, root, row, where),) for row in tuned], processes)
    run_all(one, [(place, seed) for seed in range(seeds) for place in places], processes)
