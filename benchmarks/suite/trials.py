"""What was tried for the preset and the defaults: ``python -m benchmarks.suite.trials``.

All of it on validation images of development tasks, and of four tasks that exist for this alone.
No test image is read. ``benchmarks/results/suite/trials.json`` has every run, ``trials.md`` means.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from avalanche.core import BasePlugin

from avalanche_cetl import DecoderHints, FitNetsHints, InformationMaximization, SoftTargets
from avalanche_cetl.training import ClassifyStage, CoupledStage, SourceStage, Variant
from benchmarks import markdown
from benchmarks.data.views import jitter, views
from benchmarks.methods.plain import accuracy
from benchmarks.records import cell
from benchmarks.suite.rows import cetl
from benchmarks.suite.runs import FOLDER, PACKAGES, Runs
from benchmarks.suite.tasks import (
    BATCH,
    LEARNING_RATE,
    WIDTH,
    Task,
    digits_without_source,
    pair,
    photographs,
)
from benchmarks.suite.tasks import TASKS as SUITE

SEEDS = (100, 101, 102)
TASKS = {name: task for name, task in SUITE.items() if task.development} | {
    "USPS, 10 labels": Task(pair("MN", "US", True, 10), "few", True, 8, jitter),
    "USPS, 50 labels": Task(pair("MN", "US", True, 50), "few", True, 8, jitter),
    "CIFAR-10, 100 labels": Task(photographs(100), "few", True, 12, views, False),
    "digits-mini, no source data": Task(digits_without_source, "free", True, 8, jitter),
}


_DIRECT, _JOINT, _GFI = {"variant": "direct"}, {"variant": "joint"}, {"variant": "gfi"}
_BEST = {"preset": "best"}


class Trial(NamedTuple):
    """Plugins, and arguments of CETLStrategy."""

    plugins: Callable[[], list[Any]] = list
    settings: dict[str, Any] = _DIRECT


def _probe(weight: float, features: bool = False, anneal: bool = False) -> Callable[[], list[Any]]:
    def plugins() -> list[Any]:
        soft = SoftTargets(
            weight=weight, temperature=2.0, rows="target", head="probe", anneal=anneal
        )
        return [
            soft,
            *(_features()() if features else []),
        ]

    return plugins


def _information(weight: float, anneal: bool = False) -> Callable[[], list[Any]]:
    return lambda: [
        InformationMaximization(1.0, rampup_rounds=4),
        SoftTargets(weight=weight, temperature=2.0, rows="target", anneal=anneal),
    ]


def _falling(head: str | None) -> Callable[[], list[Any]]:
    """Return what the preset has without target labels, with S's own logits or another head."""
    return lambda: [SoftTargets(weight=0.3, temperature=2.0, rows="target", head=head, anneal=True)]


def _information_alone(weight: float) -> Callable[[], list[Any]]:
    return lambda: [InformationMaximization(weight, rampup_rounds=4)]


class _Orthogonal(torch.nn.Module):
    """A linear layer without a bias whose matrix has orthonormal rows or columns."""

    def __init__(self, width: int, wanted: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(wanted, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tall = self.weight if len(self.weight) >= self.weight.shape[1] else self.weight.T
        turned = torch.linalg.qr(tall).Q
        return x @ (turned.T if tall is self.weight else turned)


class OrthogonalHints(FitNetsHints):
    """Hints through an orthogonal projection, towards features of S with mean 0 and deviation 1.

    Miles et al. 2024 (VkD, arXiv 2403.06213): a projection that keeps angles leaves all learning to
    T2.
    """

    def loss(self, strategy: Any, batch: Any) -> torch.Tensor:
        """Return the loss of a mini-batch."""
        guided = self._guided
        if self.regressor is None and guided is not None and guided.values:
            wanted = self._read_hint(strategy, batch).shape[1]
            self.regressor = _Orthogonal(guided.values[-1].shape[1], wanted)
        return super().loss(strategy, batch)

    def _read_hint(self, strategy: Any, batch: Any) -> torch.Tensor:
        hint = super()._read_hint(strategy, batch)
        return (hint - hint.mean(0)) / hint.std(0).clamp_min(1e-6)


def _features(weight: float = 1.0, orthogonal: bool = False) -> Callable[[], list[Any]]:
    kind = OrthogonalHints if orthogonal else FitNetsHints
    return lambda: [kind(target_layer="hidden", weight=weight, rows="target")]


class _Moving:
    """Networks whose goal goes through the same random view as the image that T2 sees."""

    def __init__(self, networks: Any):
        self._networks = networks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def goal(self, batch: Any) -> Any:
        goal, hidden = self._networks.goal(batch)
        both = self._networks.view(torch.cat([batch.images, goal], 1))
        self._seen, moved = both.split(batch.images.shape[1], 1)
        return moved, hidden

    def view(self, _: Any) -> Any:
        return self._seen


class MovedGoal(CoupledStage):
    """Stage 2 with a goal that is turned and shifted as T2's view is."""

    def losses(self, networks: Any, batch: Any) -> dict[str, Any]:
        """Return L_rt."""
        return super().losses(_Moving(networks), batch)  # type: ignore[arg-type]


class LabelsLast(BasePlugin):  # type: ignore[misc]
    """From the middle of the rounds on stage 3 alone."""

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Take the coupling out."""
        if 2 * strategy.clock.train_exp_epochs >= strategy.train_epochs:
            strategy.variant = Variant("labels", (ClassifyStage(),))


_MOVED = Variant("e-moved", (SourceStage(), MovedGoal(), ClassifyStage()))
ROWS = {
    "alone": Trial(),
    **{f"probe, weight {w:g}": Trial(_probe(w)) for w in (0.5, 1, 2, 3, 5, 10, 30)},
    **{f"probe, weight {w:g} falling": Trial(_probe(w, anneal=True)) for w in (3, 10)},
    **{f"probe, weight {w:g}, and features": Trial(_probe(w, features=True)) for w in (3, 10)},
    "features": Trial(_features()),
    **{f"features, orthogonal, weight {w:g}": Trial(_features(w, True)) for w in (0.1, 1, 10)},
    "CETL as it comes": Trial(settings=_BEST),
    "CETL as it comes, and features": Trial(_features(), _BEST),
    **{
        f"CETL as it comes, and features, orthogonal, weight {w:g}": Trial(
            _features(w, True), _BEST
        )
        for w in (0.1, 1)
    },
    "hints, joint": Trial(lambda: [DecoderHints(1.0)], _JOINT),
    "hints, joint, and probe, weight 10": Trial(
        lambda: [DecoderHints(1.0), *_probe(10.0)()], _JOINT
    ),
    "S": Trial(lambda: [SoftTargets(weight=1.0, temperature=2.0, rows="target")]),
    "information maximisation": Trial(_information_alone(1.0)),
    **{f"information maximisation, weight {w:g}": Trial(_information_alone(w)) for w in (0.3, 3)},
    **{
        f"information maximisation and S, weight {w:g}": Trial(_information(w))
        for w in (0.1, 0.3, 1)
    },
    **{
        f"information maximisation and S, weight {w:g} falling": Trial(_information(w, anneal=True))
        for w in (0.3, 1, 3)
    },
    # Both in one go: S was trained anew after the rows above.
    "preset best, S's own logits": Trial(_falling(None), _BEST),
    "preset best, S's class centroids": Trial(_falling("centroids"), _BEST),
    "defaults": Trial(settings=_GFI),
    "e": Trial(settings={"variant": "e"}),
    "e, goal moved with the view": Trial(settings={"variant": _MOVED}),
    "defaults, stage 2 at 0.03 of the rate": Trial(settings=_GFI | {"lr_factors": (1.0, 0.03)}),
    "defaults, coupling in the first half of the rounds": Trial(lambda: [LabelsLast()], _GFI),
}


def kept_trials() -> Runs:
    """Return the trials that are there."""
    settings = {"width": WIDTH, "batch": BATCH, "adam_lr": LEARNING_RATE, "part": "validation"}
    return Runs(FOLDER / "trials.json", ("task", "row", "seed"), settings, PACKAGES)


def table() -> str:
    """Write the means and standard errors over seeds, a row for each trial, in Markdown."""
    runs = kept_trials().runs
    names = [name for name in TASKS if any(run["task"] == name for run in runs)]
    lines = []
    for row in ROWS:
        found = [[r["accuracy"] for r in runs if (r["task"], r["row"]) == (n, row)] for n in names]
        if any(found):
            lines.append([row, *(cell(values) for values in found)])
    header = ["validation accuracy %", *names]
    said = (
        "Means with standard errors over seeds 100 to 102, or the first of them (a figure without "
        "an error is one seed); written by `python -m benchmarks.suite.trials`.\n\n"
    )
    return said + markdown.table(header, lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--tasks", default="", help="names, separated by ;")
    parser.add_argument("--rows", default="", help="names, separated by ;")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept = kept_trials()
    for name in filter(None, given.tasks.split(";")):
        for seed in SEEDS:
            rows = [r for r in given.rows.split(";") if r and not kept.find(name, r, seed)]
            data = TASKS[name].make(given.data_root, seed) if rows else None
            for row in rows:
                torch.manual_seed(seed)
                start = time.perf_counter()
                trial = ROWS[row]
                network = cetl(TASKS[name], data, seed, trial.plugins(), **trial.settings)  # type: ignore[arg-type]
                found = {"task": name, "row": row, "seed": seed}
                found["accuracy"] = round(accuracy(network, *data.validation), 2)  # type: ignore[union-attr]
                found["seconds"] = round(time.perf_counter() - start, 1)
                print(*found.values(), sep=" | ", flush=True)
                kept.add(found)
    (FOLDER / "trials.md").write_text(table())


if __name__ == "__main__":
    main()
