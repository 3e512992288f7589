"""Copies of benchmarks and experiences with other data sets."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from avalanche.benchmarks.scenarios import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience


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
