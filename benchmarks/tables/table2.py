"""Table 2, transfer to CIFAR-10-s with S = tf_efficientnet_lite0, and what a user would try.

Every row trains the same CI-CNN on the same images; see ``benchmarks/tables/transfer.py``. Rows
that have a strength get it from validation images, which are training images that CIFAR-10-s
leaves out, with a seed of its own; then it is the same for all seeds. The last epoch counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl import DecoderHints, FitNetsHints, SoftTargets, TimmEncoder
from avalanche_cetl.encoders import Encoder, linear_probe
from benchmarks.records import accuracies, cell, paired, results
from benchmarks.tables import board
from benchmarks.tables.board import Row
from benchmarks.tables.sources import packaged
from benchmarks.tables.transfer import Budget, Job, coupled, gfi_of, naive
from benchmarks.where import Where

TABLE = "table2"
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
    "cpu": Budget(per_class=200, epochs=20, width=0.25, warmup_epochs=5, gfi_samples=128),
    "full": Budget(per_class=1000, epochs=100, width=1.0, warmup_epochs=30),
}


# ------------------------------------------------------------------ methods


def baseline(job: Job, _strength: float) -> nn.Module:
    """T2 on the labels alone."""
    return naive(job, job.network())


def longer(job: Job, _strength: float) -> nn.Module:
    """The same for three times as many epochs: T2's, T1's and S's passes in CETL's stages."""
    return naive(job, job.network(), passes=3)


def longer_on_mixed(job: Job, _strength: float) -> nn.Module:
    """The same with CutMix and MixUp in every mini-batch, labels mixed too."""
    return naive(job, job.network(), passes=3, mixed=True)


def probe(job: Job, strength: float) -> nn.Module:
    """A classifier of S's features: for those who can run S in the end."""
    return linear_probe(job.features, job.train[1], strength)


def feature_distillation(job: Job, strength: float) -> nn.Module:
    """T2's code towards S's features through a learned linear layer, beside the labels."""
    hints = FitNetsHints("hidden", weight=strength, rows="labelled", source=job.source)
    return naive(job, job.network(), plugins=[hints])


def soft_targets(job: Job, strength: float) -> nn.Module:
    """T2's logits towards those of a probe on S, beside the labels."""
    return naive(job, job.network(), plugins=[softened(job, strength)])


def softened(job: Job, weight: float, rows: str = "labelled") -> SoftTargets:
    """Soft targets, at temperature 2, of a probe on S that is fitted on the labelled images."""
    known = job.train[1] >= 0
    head = linear_probe(job.features[known], job.train[1][known], PROBE_STRENGTH)
    return SoftTargets(2.0, weight, rows=rows, source=job.source, head=head)


class FineTuned(nn.Module):
    """S with a new head, all its weights trained."""

    def __init__(self, encoder: TimmEncoder, job: Job):
        super().__init__()
        torch.manual_seed(job.seed)  # of the head, whatever was drawn before
        self.trunk = copy.deepcopy(encoder.module).requires_grad_(True)
        self.preprocess = copy.deepcopy(encoder.preprocessing)
        self.head = nn.Linear(encoder.dim, job.classes)
        self.pixels = job.pixels

    def forward(self, x: Tensor) -> Tensor:
        """Give logits of standardised images."""
        trunk: Any = self.trunk
        maps = trunk.forward_features(self.preprocess(self.pixels.restore(x)))
        return self.head(trunk.forward_head(maps, pre_logits=True))


def fine_tuning(job: Job, _strength: float) -> nn.Module:
    """S itself with a new head."""
    return naive(job, FineTuned(packaged(SOURCE, job.budget.image_size), job))


def cetl(variant: str) -> Callable[[Job, float], nn.Module]:
    """CETL as printed, in one of its variants; the strength is DWA's lambda."""

    def train(job: Job, strength: float) -> nn.Module:
        return coupled(job, variant=variant, dwa_lambda=strength)

    return train


def hints(job: Job, strength: float) -> nn.Module:
    """The same with a fixed goal, T1's hidden layers, and a slower stage 2: the strength."""
    return coupled(
        job,
        plugins=[DecoderHints(1.0)],
        variant="gfi",
        dwa_lambda=PENALTIES[1],
        fixed_goal=True,
        lr_factors=(1.0, strength),
    )


def hints_and_soft_targets(job: Job, strength: float) -> nn.Module:
    """And soft targets of the probe on S; the strength is theirs."""
    return coupled(
        job,
        plugins=[DecoderHints(1.0), softened(job, strength)],
        variant="gfi",
        dwa_lambda=PENALTIES[1],
        fixed_goal=True,
        lr_factors=(1.0, 0.1),
    )


def on_all(job: Job, plugin: Any) -> nn.Module:
    """Train by a distillation loss on all images, beside the labels, in one step."""
    return coupled(job, [plugin], variant="joint", loss_weights=(0, 1, 0), warmup_epochs=0)


def feature_distillation_on_all(job: Job, strength: float) -> nn.Module:
    """T2's code towards S's features of all images, unlabelled and mixed ones too."""
    return on_all(job, FitNetsHints("hidden", weight=strength, rows="target"))


def soft_targets_on_all(job: Job, strength: float) -> nn.Module:
    """T2's logits towards the probe's on all images, unlabelled and mixed ones too."""
    return on_all(job, softened(job, strength, "target"))


def on_mixed(job: Job, variant: str, plugins: Sequence[Any] = ()) -> nn.Module:
    """``preset="best"`` with two passes over the labelled images in a round.

    The warm-up is the budget's, not the preset's 10 epochs: at ``cpu`` 2 over five times as many
    images, which makes as many steps.
    """
    own = gfi_of("best", job.budget, job.seed)
    return coupled(job, plugins, variant=variant, preset="best", gfi=own, stage_epochs=(1, 1, 2))


def best_on_mixed(variant: str) -> Callable[[Job, float], nn.Module]:
    """The same, with no plugins but the preset's."""
    return lambda job, _strength: on_mixed(job, variant)


def preset(name: str) -> Callable[[Job, float], nn.Module]:
    """CETL gfi with the settings of a preset."""

    def train(job: Job, _strength: float) -> nn.Module:
        own = gfi_of(name, job.budget, job.seed)
        return coupled(job, preset=name, gfi=own, warmup_epochs=None)

    return train


PENALTIES = (1e-3, 1e-2, 1e-1)
WEIGHTS = (0.3, 1.0, 3.0)
SOFT = (1.0, 3.0, 10.0)
MIXED = 4  # images to every labelled one
ROWS = {
    "baseline": Row(baseline),
    "baseline, 3 times the epochs": Row(longer),
    "baseline, mixed images, 3 times the epochs": Row(longer_on_mixed),
    "linear probe on S": Row(probe, (1e-4, 1e-3, 1e-2), reads_features=True),
    "fine-tuning S": Row(fine_tuning, scales=("smoke", "full")),
    "feature distillation": Row(feature_distillation, WEIGHTS),
    "soft targets": Row(soft_targets, WEIGHTS),
    "feature distillation, mixed images": Row(feature_distillation_on_all, WEIGHTS, mixed=MIXED),
    "soft targets, mixed images": Row(soft_targets_on_all, SOFT, mixed=MIXED),
    "CETL f": Row(cetl("f")),
    "CETL u": Row(cetl("u")),
    "CETL e": Row(cetl("e")),
    "CETL joint": Row(cetl("joint")),
    "CETL two_step": Row(cetl("two_step")),
    "CETL fi": Row(cetl("fi"), PENALTIES, tuned_as="CETL gfi"),
    "CETL gfi": Row(cetl("gfi"), PENALTIES),
    "CETL gfi, preset paper": Row(preset("paper"), preset="paper"),
    "CETL gfi, preset best": Row(preset("best"), preset="best"),
    "CETL gfi, hints": Row(hints, (0.03, 0.1, 0.3)),
    "CETL gfi, hints, soft targets": Row(hints_and_soft_targets, WEIGHTS),
    "CETL e, preset best, mixed images": Row(best_on_mixed("e"), mixed=MIXED, preset="best"),
    "CETL fi, preset best, mixed images": Row(best_on_mixed("fi"), mixed=MIXED, preset="best"),
    "CETL gfi, preset best, mixed images": Row(best_on_mixed("gfi"), mixed=MIXED, preset="best"),
}


# ------------------------------------------------------------------ the table


def source_of(row: str, budget: Budget, root: str, where: Where) -> Encoder:
    """S, the same for every row."""
    return packaged(SOURCE, budget.image_size)


run = partial(board.run, TABLE)


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
        values = accuracies(runs)
        gains = paired(runs, alone) if row != "baseline" else []
        strengths = {run["settings"]["strength"] for run in runs.values()} - {0.0}
        paper = PAPER.get(row)
        cells = [
            row,
            cell(values, 2, empty="not run"),
            cell(gains, 2, sign=True),
            ", ".join(f"{s:g}" for s in sorted(strengths)),
            f"{paper:.2f}" if paper else "",
            f"{paper - PAPER['baseline']:+.2f}" if paper and row != "baseline" else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
