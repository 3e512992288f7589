"""Runs the rows of a table on CIFAR-10-s: strengths on validation images, then the test, once.

A table's module has ``ROWS``, ``BUDGETS`` and ``source_of(row, budget, root)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from avalanche_cetl.encoders import Encoder
from benchmarks.tables.jobs import run_all
from benchmarks.tables.runs import results, run_once
from benchmarks.tables.transfer import Budget, Job, accuracy, features_of, read_data

TUNING_SEED = 100


@dataclass(frozen=True)
class Row:
    """A method: how it trains, and the strengths that it may choose from.

    :ivar train: ``(job, strength) -> network``.
    :ivar reads_features: whether the network reads S's features in place of images.
    :ivar tuned_as: the row whose strength it takes; None: it chooses.
    :ivar scales: where it is run.
    """

    train: Callable[[Job, float], nn.Module]
    strengths: tuple[float, ...] = (0.0,)
    reads_features: bool = False
    tuned_as: str | None = None
    scales: tuple[str, ...] = ("smoke", "cpu", "full")


@lru_cache(maxsize=4)
def held_features(table: str, row: str, budget: Budget, root: str, part: str) -> Tensor:
    """Give a row's features of S for a part of the data."""
    return features_of(read_data(root, budget), part, encoder_of(table, row, budget, root))


@lru_cache(maxsize=4)
def encoder_of(table: str, row: str, budget: Budget, root: str) -> Encoder:
    """Give a row's S."""
    found: Encoder = import_module(f"benchmarks.tables.{table}").source_of(row, budget, root)
    return found


def _fit(
    table: str, scale: str, root: str, row: str, seed: int, strength: float, part: str
) -> dict[str, Any]:
    """Train, and read one of the held-out sets."""
    module = import_module(f"benchmarks.tables.{table}")
    budget: Budget = module.BUDGETS[scale]
    data = read_data(root, budget)
    features = held_features(table, row, budget, root, "train")
    encoder = encoder_of(table, row, budget, root)
    job = Job(data.train, features, budget, seed, data.pixels, encoder)
    network = module.ROWS[row].train(job, strength)
    held_out = None
    if module.ROWS[row].reads_features:
        held_out = held_features(table, row, budget, root, part)
    return {
        "accuracy": accuracy(network, data.part(part), held_out),
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": f"CIFAR-10 ({data.kind})",
    }


def tune(table: str, scale: str, root: str, row: str) -> str:
    """Choose a row's strength by accuracy on the validation images."""
    module = import_module(f"benchmarks.tables.{table}")
    strengths = module.ROWS[row].strengths

    def job() -> dict[str, Any]:
        scores = {
            strength: _fit(table, scale, root, row, TUNING_SEED, strength, "validation")["accuracy"]
            for strength in strengths
        }
        best = max(scores, key=lambda strength: scores[strength])
        return {"chosen": best, "scores": {str(k): v for k, v in scores.items()}}

    settings = asdict(module.BUDGETS[scale]) | {"strengths": strengths}
    figures = run_once(table, scale, f"{row} (tuning)", TUNING_SEED, settings, job)["figures"]
    return f"{row}: strength {figures['chosen']}, of {figures['scores']}"


def one(table: str, scale: str, root: str, row: str, seed: int) -> str:
    """Train a row with a seed, its strength chosen before; read the test set once."""
    module = import_module(f"benchmarks.tables.{table}")
    strength = module.ROWS[row].strengths[0]
    if len(module.ROWS[row].strengths) > 1:
        tuned = results(table, scale)[f"{module.ROWS[row].tuned_as or row} (tuning)"]
        strength = tuned[TUNING_SEED]["figures"]["chosen"]
    settings = asdict(module.BUDGETS[scale]) | {"strength": strength}
    figures = run_once(
        table,
        scale,
        row,
        seed,
        settings,
        lambda: _fit(table, scale, root, row, seed, strength, "test"),
    )["figures"]
    return f"{row}, seed {seed}: {figures['accuracy']:.2f} %"


def run(
    table: str,
    scale: str,
    root: str,
    seeds: int,
    rows: list[str] | None = None,
    processes: int = 1,
) -> None:
    """Run what is missing, seed by seed; all rows by default."""
    module = import_module(f"benchmarks.tables.{table}")
    chosen = [row for row in rows or module.ROWS if scale in module.ROWS[row].scales]
    for row in chosen:  # features are in the store before several processes ask for them
        held_features(table, row, module.BUDGETS[scale], root, "train")
    tuned = dict.fromkeys(
        module.ROWS[row].tuned_as or row for row in chosen if len(module.ROWS[row].strengths) > 1
    )
    run_all(tune, [(table, scale, root, row) for row in tuned], processes)
    tasks = [(table, scale, root, row, seed) for seed in range(seeds) for row in chosen]
    run_all(one, tasks, processes)
