"""Fig. 2: losses and penalties of CETL gfi over the rounds, and both sides of eq. 14.

Left, as the paper: L_c and DWA1 to DWA3 on CIFAR-10-s (:mod:`benchmarks.tables.table2`'s
protocol). Right: the two sides of eq. 14 on MN-US (:mod:`benchmarks.tables.table5`'s), where the
paper has SV-MN. Above, everything as printed: no other option of the strategy is used, but the
views. Below, stage 2's goal is that of T1 as stage 1 left it.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from avalanche_cetl import CETLStrategy, CoupledModel, GFISettings, bound_metrics
from benchmarks import records
from benchmarks.jobs import run_all
from benchmarks.tables import board, table2, table5
from benchmarks.tables.transfer import coupled
from benchmarks.where import Where

TABLE = "fig2"
LOSSES, BOUND, FIXED = "CIFAR-10-s, losses", "MN-US, bound", ", fixed goal"
ROWS = (LOSSES, BOUND, LOSSES + FIXED, BOUND + FIXED)
TRACED = ("L_c", "DWA1", "DWA2", "DWA3")


class Trace(SupervisedPlugin):
    """Keeps what every round reports."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[dict[str, float]] = []

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take a round's means."""
        self.rounds.append(dict(strategy.round_losses))


def losses(scale: str, root: str, seed: int, where: Where, fixed_goal: bool) -> dict[str, Any]:
    """L_c and the penalties by round."""
    trace = Trace()
    job = board.job_of(board.Place(table2.TABLE, scale, root, "CETL gfi", where), seed)
    coupled(job, plugins=[trace], variant="gfi", fixed_goal=fixed_goal)
    return {"rounds": trace.rounds}


def bound(scale: str, root: str, seed: int, where: Where, fixed_goal: bool) -> dict[str, Any]:
    """Both sides of eq. 14 on the target's test images, by round."""
    job = table5.job_of("MN-US", scale, root, seed, where)
    budget, source = job.budget, job.source
    x, y = job.pair.source_test
    with torch.no_grad():
        parts = [part.to(where.device) for part in x.split(500)]
        found = torch.cat([source.cheapest_logits(part).argmax(1).cpu() for part in parts])
    error = float((found != y.cpu()).float().mean())
    model = CoupledModel.build(source, job.network(), job.shape)
    metrics = bound_metrics(source_error=error, error=True)
    strategy = CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), budget.learning_rate),
        gfi=GFISettings(samples=budget.gfi_samples, seed=seed),
        augment=job.augment,
        fixed_goal=fixed_goal,
        **where.switches(),
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


def one(row: str, scale: str, root: str, seed: int, where: Where) -> str:
    """Run one of them."""
    fixed = row.endswith(FIXED)
    is_bound = row.startswith(BOUND)
    work = bound if is_bound else losses
    settings = asdict((table5 if is_bound else table2).BUDGETS[scale])
    if fixed:
        settings["fixed_goal"] = True
    job = partial(work, scale, root, seed, where, fixed)
    records.run_once(records.Run(TABLE, scale, row, seed), settings, job, where)
    return f"{row}, seed {seed}"


def run(
    scale: str,
    root: str,
    seeds: int,
    rows: list[str] | None = None,
    processes: int = 1,
    device: str = "cpu",
) -> None:
    """Run what is missing."""
    where = Where.of(scale, device)
    tasks = [(row, scale, root, seed, where) for row in rows or ROWS for seed in range(seeds)]
    run_all(one, tasks, processes)


def render(scale: str) -> str:
    """Draw the figure from the result files alone; say in words what it shows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = records.results(TABLE, scale)
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.2))
    said = []
    for row, axis in zip(ROWS, axes.flat, strict=True):
        draw = _draw_bound if row.startswith(BOUND) else _draw_losses
        words = draw(axis, found.get(row, {}))
        said += [f"{row}: {'; '.join(words)}."] if words else []
        axis.set(title=row, xlabel="round")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.tight_layout()
    path = picture(scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return "\n\n".join(said) if said else "not run"


def _draw_losses(axis: Any, found: dict[int, dict[str, Any]]) -> list[str]:
    """L_c and the penalties over their maxima; a line a seed. Say what they show."""
    said = []
    for number, name in enumerate(TRACED):
        lines = _lines(found, name)
        for line in lines:
            top = max(line) or 1.0
            axis.plot(range(1, len(line) + 1), [v / top for v in line], color=f"C{number}")
        if lines:
            axis.plot([], [], color=f"C{number}", label=name)
            said.append(f"{name} is highest in round {_peaks(lines)}")
    for name in ("L_rs", "L_rt"):
        lines = _lines(found, name)
        if lines:
            ends = ", ".join(f"{line[-1]:.3g}" for line in lines)
            said.append(f"{name} ends at {ends}, its maximum is {max(map(max, lines)):.3g}")
    axis.set(ylabel="over its maximum")
    return said


def _draw_bound(axis: Any, found: dict[int, dict[str, Any]]) -> list[str]:
    """Both sides of eq. 14, a line a seed. Say what they show."""
    said = []
    for number, (name, title) in enumerate(
        (("TargetError", "LHS: target error"), ("Bound", "RHS"))
    ):
        lines = _lines(found, name)
        for line in lines:
            axis.plot(range(1, len(line) + 1), line, color=f"C{number + 4}")
        if lines:
            axis.plot([], [], color=f"C{number + 4}", label=title)
            said.append(
                f"{title} ends at {records.mean_and_error([line[-1] for line in lines], 3)}"
            )
    axis.set(yscale="log")
    return said


def picture(scale: str) -> Path:
    """Where the figure is kept."""
    return records.TABLES / TABLE / f"fig2-{scale}.png"


def _lines(found: dict[int, dict[str, Any]], name: str) -> list[list[float]]:
    """A value by round, one list a seed; a penalty that is not there yet is 0."""
    return [
        [one.get(name, 0.0) for one in document["figures"]["rounds"]]
        for _, document in sorted(found.items())
    ]


def _peaks(lines: list[list[float]]) -> str:
    return ", ".join(str(1 + max(range(len(v)), key=v.__getitem__)) for v in lines)
