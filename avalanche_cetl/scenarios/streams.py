"""Copies of benchmarks and experiences with other data sets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks.scenarios import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience


def check_list(streams: Sequence[str] | None) -> None:
    """Raise TypeError for one name in place of a list of names, which is a sequence of letters."""
    if isinstance(streams, str):
        raise TypeError(f"streams={streams!r} has to be a list, e.g. streams=[{streams!r}].")


def check_filled(benchmark: CLScenario, streams: Sequence[str]) -> None:
    """Raise ValueError unless all experiences of some streams have an image, and there is one.

    :param benchmark: any Avalanche benchmark.
    :param streams: names of the streams.
    """
    sizes = [
        (name, number, len(experience.dataset))
        for name in streams
        for number, experience in enumerate(benchmark.streams[name])
    ]
    if not sizes:
        raise ValueError(f"the benchmark has no experience in the streams {list(streams)}.")
    for name, number, size in sizes:
        if not size:
            raise ValueError(
                f"experience {number} of the stream {name!r} is empty: it has no image. Leave it "
                "out of the benchmark."
            )


def benchmark_of(benchmark: CLScenario, streams: Sequence[Any]) -> CLScenario:
    """Return a copy of a benchmark with these streams; class and other attributes stay."""
    result = copy.copy(benchmark)
    CLScenario.__init__(result, list(streams))
    return result


def experience_of(experience: Any, dataset: Any) -> DatasetExperience:
    """Return an experience with this data set, and with the other attributes of a given one."""
    made: DatasetExperience = DatasetExperience(dataset=dataset)
    for name, value in vars(experience).items():
        if not name.startswith("_"):
            made.__dict__[name] = value
    return made
