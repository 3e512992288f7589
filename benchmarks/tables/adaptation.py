"""Tables of pairs of domains: every row on every pair, strengths by a score without labels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from avalanche_cetl import ModuleEncoder
from avalanche_cetl.evaluation import information_maximization
from benchmarks.data.digits import PHOTOGRAPHS, read_pair
from benchmarks.methods.job import AdaptationJob
from benchmarks.methods.plain import accuracy, logits, source_of
from benchmarks.tables.board import TUNING_SEED, Place, Table


class Adaptation(Table):
    """A table whose rows train without target labels, all on the same pairs of domains."""

    def job(self, place: Place, seed: int, strength: float) -> AdaptationJob:
        """Make what a row's method takes; S is trained once for all methods of a seed."""
        any_row = next(iter(self.rows))  # the pair and S are the same for all
        return replace(shared_job(replace(place, row=any_row), seed), strength=strength)

    def score(self, place: Place, job: Any, network: Any) -> float:
        """Compute information maximisation on the target's training images."""
        return float(information_maximization(logits(network, job.pair.target)))

    def figures(self, place: Place, job: Any, network: Any) -> dict[str, float]:
        """Compute the accuracy on the target's test images, and on the source's if it has any."""
        limit = job.budget.test_images
        x, y = job.pair.target_test
        found = {"accuracy": accuracy(network, x[:limit], y[:limit])}
        if job.pair.source_test is not None:
            x, y = job.pair.source_test
            found["source_accuracy"] = accuracy(network, x[:limit], y[:limit])
        return found

    def ask(self, place: Place) -> None:
        """Read the pair."""
        self.job(place, TUNING_SEED, 0.0)

    def more_settings(self, place: Place) -> dict[str, Any]:
        """Return the pair."""
        return {"direction": place.data}


@lru_cache(maxsize=2)
def shared_job(place: Place, seed: int) -> AdaptationJob:
    """Read a pair for all methods of a seed; S is trained once for them, when one asks."""
    budget = place.budget

    def trained() -> ModuleEncoder:
        return source_of(job)

    job = AdaptationJob(
        budget=budget,
        seed=seed,
        where=place.where,
        pair=read_pair(place.data, place.root, budget.counts, seed).to(place.where.device),
        make_source=cache(trained),
        photographs=place.data in PHOTOGRAPHS,
    )
    return job
