"""Table 2, transfer to CIFAR-10-s with S = tf_efficientnet_lite0, and what a user would try.

Every row trains the same CI-CNN on the same images; see ``benchmarks/tables/transfer.py``. Rows
that have a strength get it from validation images, which are training images that CIFAR-10-s
leaves out, with a seed of its own; then it is the same for all seeds. The last epoch counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from avalanche_cetl import FitNetsHints, SoftTargets, TimmEncoder
from benchmarks.cifar import CLASSES
from benchmarks.tables.jobs import run_all
from benchmarks.tables.runs import mean, results, run_once
from benchmarks.tables.transfer import (
    Budget,
    Job,
    accuracy,
    coupled,
    features_of,
    naive,
    probe,
    read_data,
)

TABLE = "table2"
TUNING_SEED = 100
SOURCE = "tf_efficientnet_lite0"
PROBE_STRENGTH = 1e-3
PAPER = {  # Table 2 as printed
    "baseline": 61.29,
    "CETL f": 62.41,
    "CETL u": 62.63,
    "CETL e": 63.97,
    "CETL fi": 64.19,
    "CETL gfi": 65.33,
}
BUDGETS = {
    "smoke": Budget(
        per_class=16,
        epochs=1,
        width=0.05,
        warmup_epochs=1,
        image_size=32,
        gfi_samples=16,
        validation_per_class=4,
        test_per_class=4,
    ),
    "cpu": Budget(per_class=1000, epochs=12, width=0.5, warmup_epochs=5),
    "full": Budget(per_class=1000, epochs=100, width=1.0, warmup_epochs=30),
}


@dataclass(frozen=True)
class Row:
    """A method: how it trains, and the strengths that it may choose from.

    :ivar train: ``(job, strength) -> network``.
    :ivar reads_features: whether the network reads S's features in place of images.
    :ivar scales: where it is run.
    """

    train: Callable[[Job, float], nn.Module]
    strengths: tuple[float, ...] = (0.0,)
    reads_features: bool = False
    scales: tuple[str, ...] = ("smoke", "cpu", "full")


# ------------------------------------------------------------------ methods


def baseline(job: Job, _strength: float) -> nn.Module:
    """T2 on the labels alone."""
    return naive(job, job.network())


def longer(job: Job, _strength: float) -> nn.Module:
    """The same for three times as many epochs: T2's, T1's and S's passes in CETL's stages."""
    return naive(job, job.network(), passes=3)


def linear_probe(job: Job, strength: float) -> nn.Module:
    """A classifier of S's features: for those who can run S in the end."""
    return probe(job.features, job.train[1], strength)


def feature_distillation(job: Job, strength: float) -> nn.Module:
    """T2's code towards S's features through a learned linear layer, beside the labels."""
    hints = FitNetsHints("hidden", weight=strength, rows="labelled", source=job.source)
    return naive(job, job.network(), plugins=[hints])


def soft_targets(job: Job, strength: float) -> nn.Module:
    """T2's logits towards those of a probe on S, beside the labels."""
    return naive(job, job.network(), plugins=[softened(job, strength)])


def softened(job: Job, weight: float) -> SoftTargets:
    """Soft targets of a probe on S at temperature 2."""
    head = probe(job.features, job.train[1], PROBE_STRENGTH)
    return SoftTargets(2.0, weight, source=job.source, head=head)


class FineTuned(nn.Module):
    """S with a new head, all its weights trained."""

    def __init__(self, encoder: TimmEncoder, job: Job):
        super().__init__()
        self.trunk = copy.deepcopy(encoder.module).requires_grad_(True)
        self.preprocess = encoder.preprocess
        self.head = nn.Linear(encoder.dim, len(CLASSES))
        self.pixels = job.pixels

    def forward(self, x: Tensor) -> Tensor:
        """Give logits of standardised images."""
        trunk: Any = self.trunk
        maps = trunk.forward_features(self.preprocess(self.pixels.restore(x)))
        return self.head(trunk.forward_head(maps, pre_logits=True))


def fine_tuning(job: Job, _strength: float) -> nn.Module:
    """S itself with a new head."""
    return naive(job, FineTuned(encoder_of(job.budget), job))


def cetl(variant: str) -> Callable[[Job, float], nn.Module]:
    """CETL as printed, in one of its variants; the strength is DWA's lambda."""

    def train(job: Job, strength: float) -> nn.Module:
        return coupled(job, variant=variant, dwa_lambda=strength)

    return train


PENALTIES = (1e-3, 1e-2, 1e-1)
ROWS = {
    "baseline": Row(baseline),
    "baseline, 3 times the epochs": Row(longer),
    "linear probe on S": Row(linear_probe, (1e-4, 1e-3, 1e-2), reads_features=True),
    "fine-tuning S": Row(fine_tuning, scales=("smoke", "full")),
    "feature distillation": Row(feature_distillation, (0.1, 0.3, 1.0)),
    "soft targets": Row(soft_targets, (0.1, 0.3, 1.0)),
    "CETL f": Row(cetl("f")),
    "CETL u": Row(cetl("u")),
    "CETL e": Row(cetl("e")),
    "CETL joint": Row(cetl("joint")),
    "CETL two_step": Row(cetl("two_step")),
    "CETL fi": Row(cetl("fi"), PENALTIES),
    "CETL gfi": Row(cetl("gfi"), PENALTIES),
}


# ------------------------------------------------------------------ the table


@lru_cache(maxsize=1)
def encoder_of(budget: Budget) -> TimmEncoder:
    """S, with the ImageNet weights of its package."""
    return TimmEncoder(SOURCE, weights="package", image_size=budget.image_size)


def job_of(scale: str, root: str, seed: int) -> Job:
    """What the methods may read."""
    budget = BUDGETS[scale]
    data = read_data(root, budget)
    features = features_of(data, "train", encoder_of(budget))
    return Job(data.train, features, budget, seed, data.pixels)


def one(scale: str, root: str, row: str, seed: int) -> str:
    """Train a row with a seed, its strength chosen before; read the test set once."""
    chosen = ROWS[row]
    strength = chosen.strengths[0]
    if len(chosen.strengths) > 1:
        strength = results(TABLE, scale)[f"{row} (tuning)"][TUNING_SEED]["figures"]["chosen"]
    figures = _run(scale, root, row, seed, strength, "test")
    return f"{row}, seed {seed}: {figures['accuracy']:.2f} %"


def tune(scale: str, root: str, row: str) -> str:
    """Choose a row's strength by accuracy on the validation images."""

    def job() -> dict[str, Any]:
        scores = {
            strength: _fit(scale, root, row, TUNING_SEED, strength, "validation")["accuracy"]
            for strength in ROWS[row].strengths
        }
        best = max(scores, key=lambda strength: scores[strength])
        return {"chosen": best, "scores": {str(k): v for k, v in scores.items()}}

    settings = asdict(BUDGETS[scale]) | {"strengths": ROWS[row].strengths, "source": SOURCE}
    found = run_once(TABLE, scale, f"{row} (tuning)", TUNING_SEED, settings, job)
    return f"{row}: strength {found['figures']['chosen']}, of {found['figures']['scores']}"


def _run(scale: str, root: str, row: str, seed: int, strength: float, part: str) -> dict[str, Any]:
    settings = asdict(BUDGETS[scale]) | {"strength": strength, "source": SOURCE}
    return run_once(
        TABLE, scale, row, seed, settings, lambda: _fit(scale, root, row, seed, strength, part)
    )["figures"]


def _fit(scale: str, root: str, row: str, seed: int, strength: float, part: str) -> dict[str, Any]:
    network = ROWS[row].train(job_of(scale, root, seed), strength)
    data = read_data(root, BUDGETS[scale])
    features = None
    if ROWS[row].reads_features:
        features = features_of(data, part, encoder_of(BUDGETS[scale]))
    return {
        "accuracy": accuracy(network, data.part(part), features),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def run(
    scale: str, root: str, seeds: int, rows: list[str] | None = None, processes: int = 1
) -> None:
    """Run what is missing."""
    chosen = [row for row in rows or ROWS if scale in ROWS[row].scales]
    job_of(scale, root, 0)  # S's features are in the store before the processes ask for them
    tuned = [(scale, root, row) for row in chosen if len(ROWS[row].strengths) > 1]
    run_all(tune, tuned, processes)
    run_all(one, [(scale, root, row, seed) for row in chosen for seed in range(seeds)], processes)


def render(scale: str) -> str:
    """Give the table in Markdown, from the result files alone."""
    found = results(TABLE, scale)
    alone = found.get("baseline", {})
    lines = [
        "| | test accuracy % | over the baseline, paired | strength | paper | over its baseline |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        runs = found.get(row, {})
        values = [runs[seed]["figures"]["accuracy"] for seed in sorted(runs)]
        gains = [
            runs[seed]["figures"]["accuracy"] - alone[seed]["figures"]["accuracy"]
            for seed in sorted(runs.keys() & alone.keys())
        ]
        strengths = {run["settings"]["strength"] for run in runs.values()} - {0.0}
        paper = PAPER.get(row)
        cells = [
            row,
            mean(values, 2) if values else "not run",
            mean(gains, 2, sign=True) if gains and row != "baseline" else "",
            ", ".join(f"{s:g}" for s in sorted(strengths)),
            f"{paper:.2f}" if paper else "",
            f"{paper - PAPER['baseline']:+.2f}" if paper and row != "baseline" else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
