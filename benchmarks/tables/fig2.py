"""Fig. 2: losses and penalties of CETL gfi over the rounds, and both sides of eq. 14.

Left, as the paper: L_c and DWA1 to DWA3 on CIFAR-10-s (:mod:`benchmarks.tables.table2`'s
protocol). Right: the two sides of eq. 14 on MN-US (:mod:`benchmarks.tables.table5`'s), where the
paper has SV-MN. Above, everything as printed: no other option of the strategy is used, but the
views. Below, stage 2's goal is that of T1 as stage 1 left it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_cetl import CETLStrategy, CoupledModel, GFISettings, bound_metrics
from avalanche_cetl.evaluation import LINE_STYLES, picture
from avalanche_cetl.plugins import History
from benchmarks import records
from benchmarks.methods.cetl import coupled
from benchmarks.methods.job import AdaptationJob, Job, TransferJob
from benchmarks.tables import table2, table5
from benchmarks.tables.board import Place, Table
from benchmarks.tables.rows import Row, by_id

TRACED = ("L_c", "DWA1", "DWA2", "DWA3")


def losses(job: TransferJob, fixed_goal: bool) -> dict[str, Any]:
    """Train, and return L_c and the penalties by round."""
    trace = History()
    coupled(job, plugins=[trace], variant="gfi", fixed_goal=fixed_goal)
    return {"rounds": trace.rounds}


def bound(job: AdaptationJob, fixed_goal: bool) -> dict[str, Any]:
    """Train, and return both sides of eq. 14 on the target's test images, by round."""
    budget, source = job.budget, job.source
    error = _error_of(job)
    model = CoupledModel.build(source, job.network(), job.shape)
    metrics = bound_metrics(source_error=error, error=True)
    strategy = CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), budget.learning_rate),
        gfi=GFISettings(samples=budget.gfi_samples, seed=job.seed),
        augment=job.augment,
        preset="paper",
        dwa_lambda=1e-3,
        fixed_goal=fixed_goal,
        **job.where.switches(),
        warmup_epochs=budget.warmup_epochs,
        train_mb_size=budget.batch,
        eval_mb_size=500,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
    )
    benchmark = job.benchmark()
    rounds = []
    for _ in range(budget.epochs):
        strategy.train(benchmark.train_stream, pin_memory=False)
        strategy.eval(benchmark.test_stream, pin_memory=False)
        rounds.append(dict(metrics[0].result()) | strategy.round_losses)
    return {"rounds": rounds, "source_error": error}


@torch.no_grad()
def _error_of(job: AdaptationJob) -> float:
    """Compute the error of S on the source's test images."""
    assert job.pair.source_test is not None
    x, y = job.pair.source_test
    parts = [job.source.cheapest_logits(part.to(job.where.device)) for part in x.split(500)]
    found = torch.cat([part.argmax(1).cpu() for part in parts])
    return float((found != y.cpu()).float().mean())


# ------------------------------------------------------------------ the figure


def draw_losses(axis: Any, found: dict[int, dict[str, Any]]) -> list[str]:
    """Draw L_c and the penalties over their maxima, a line a seed; say what they show."""
    said = []
    for number, name in enumerate(TRACED):
        lines = _lines(found, name)
        for line in lines:
            top = max(line) or 1.0
            _draw(axis, [value / top for value in line], number)
        if lines:
            _draw(axis, [], number, label=name)
            said.append(f"{name} is highest in round {_peaks(lines)}")
    for name in ("L_rs", "L_rt"):
        lines = _lines(found, name)
        if lines:
            ends = ", ".join(f"{line[-1]:.3g}" for line in lines)
            said.append(f"{name} ends at {ends}, its maximum is {max(map(max, lines)):.3g}")
    axis.set(ylabel="over its maximum")
    return said


def draw_bound(axis: Any, found: dict[int, dict[str, Any]]) -> list[str]:
    """Draw both sides of eq. 14, a line a seed; say what they show."""
    said = []
    for number, (name, title) in enumerate(
        (("TargetError", "LHS: target error"), ("Bound", "RHS"))
    ):
        lines = _lines(found, name)
        for line in lines:
            _draw(axis, line, number)
        if lines:
            _draw(axis, [], number, label=title)
            said.append(
                f"{title} ends at {records.mean_and_error([line[-1] for line in lines], 3)}"
            )
    axis.set(yscale="log")
    return said


def _draw(axis: Any, values: list[float], number: int, **options: Any) -> None:
    """Draw a line over rounds, in the style of that number."""
    style = LINE_STYLES[number]._asdict()
    axis.plot(range(1, len(values) + 1), values, markevery=2, **style, **options)


def _lines(found: dict[int, dict[str, Any]], name: str) -> list[list[float]]:
    """Return a value by round, one list a seed; a penalty that is not there yet is 0."""
    return [
        [one.get(name, 0.0) for one in document["figures"]["rounds"]]
        for _, document in sorted(found.items())
    ]


def _peaks(lines: list[list[float]]) -> str:
    return ", ".join(str(1 + max(range(len(v)), key=v.__getitem__)) for v in lines)


#: Draws the runs of a panel by seed, and returns in words what they show.
Draw = Callable[[Any, dict[int, dict[str, Any]]], list[str]]


@dataclass(frozen=True, kw_only=True)
class Panel(Row):
    """A panel of the figure; its method returns what is drawn in place of a network.

    :ivar of: the table whose data, budget and S it has, those of its row CETL gfi.
    """

    of: Table
    fixed_goal: bool
    draw: Draw


def _panels(id: str, title: str, trace: Any, **settings: Any) -> tuple[Panel, Panel]:
    """Return the panel with the goal that moves, as printed, and the one where it is fixed."""
    moves, fixed = (partial(trace, fixed_goal=fixed) for fixed in (False, True))
    return (
        Panel(id, title, moves, (), fixed_goal=False, **settings),
        Panel(f"{id}_fixed", f"{title}, fixed goal", fixed, (), fixed_goal=True, **settings),
    )


LOSSES, LOSSES_FIXED = _panels(
    "losses", "CIFAR-10-s, losses", losses, of=table2.TABLE, data="CIFAR-10", draw=draw_losses
)
BOUND, BOUND_FIXED = _panels(
    "bound", "MN-US, bound", bound, of=table5.TABLE, data="MN-US", draw=draw_bound
)
ROWS = by_id(LOSSES, BOUND, LOSSES_FIXED, BOUND_FIXED)


class Fig2(Table):
    """The figure, as a table whose rows are its panels."""

    def job(self, place: Place, seed: int, strength: float) -> Job:
        """Make what CETL gfi takes in the panel's table."""
        return _panel(place).of.job(_there(place), seed, strength)

    def score(self, place: Place, job: Job, network: Any) -> float:
        """Refuse: a panel has no strength to choose."""
        raise NotImplementedError("a panel has no strength to choose")

    def figures(self, place: Place, job: Job, network: Any) -> dict[str, Any]:
        """Return what the panel's method has traced."""
        return dict(network)

    def ask(self, place: Place) -> None:
        """See whether the data are there."""
        _panel(place).of.ask(_there(place))

    def budget(self, place: Place) -> Any:
        """Return the budget of the panel's table."""
        return _panel(place).of.budgets[place.scale]

    def more_settings(self, place: Place) -> dict[str, Any]:
        """Return whether the goal is fixed."""
        return {"fixed_goal": True} if _panel(place).fixed_goal else {}

    def summary(self, figures: dict[str, Any]) -> str:
        """Write what is printed of a run that has ended."""
        return f"{len(figures['rounds'])} rounds"

    def render(self, scale: str) -> str:
        """Draw the figure from the result files alone; say in words what it shows."""
        found = self.results(scale)
        figure, axes = picture(2, 2, size=(10, 7.2), sharex=True)
        said = []
        for row, axis in zip(self.rows.values(), axes.flat, strict=True):
            words = row.draw(axis, found.get(row.title, {}))
            said += [f"{row.title}: {'; '.join(words)}."] if words else []
            axis.set(title=row.title, xlabel="round")
            axis.xaxis.get_major_locator().set_params(integer=True)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(frameon=False)
        path = kept_in(scale)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return "\n\n".join(said) if said else "not run"


def kept_in(scale: str) -> Path:
    """Return where the figure is kept."""
    return records.TABLES / TABLE.name / f"fig2-{scale}.png"


def _panel(place: Place) -> Any:
    return place.the_row


def _there(place: Place) -> Place:
    """Return the place of CETL gfi in the panel's table."""
    return replace(place, table=_panel(place).of.name, row="cetl_gfi")


TABLE = Fig2("fig2", ROWS, {})
