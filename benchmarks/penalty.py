"""Where DWA matters: ``python -m benchmarks.penalty``.

The penalty DWA1 shall keep, in stage 2, what T1 needs for L_rs. Here stages are long, so that there
is something to keep: optdigits with ten labels per class (the suite's development task, its
validation images), the goal T1(S(x)) from T1 as it changes, as the paper prints it. Every row makes
as many steps, with a learning rate that does not change, and pays no penalty but DWA1. Measured
before and after each stage 2: L_rs over the variance of the pixels, on target images; in the end
the accuracy on validation images.

Importance: none (``e``), the Fisher information (``fi``), GFI (``gfi``), or the same for every
weight, which is L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483): the weights of T1 before
stage 2 are the centre. ``fi`` and ``gfi`` also in the Kronecker basis.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any, Literal

import torch

from avalanche_cetl import CETLPlugin, CETLStrategy, CoupledModel, GFISettings
from avalanche_cetl.training import ClassifyStage, CoupledStage, SourceStage, Stage, Variant
from benchmarks import markdown
from benchmarks.methods.plain import accuracy
from benchmarks.records import RESULTS, Runs, cell
from benchmarks.suite.tasks import BATCH, LEARNING_RATE, TASKS, new_network

FOLDER = RESULTS / "penalty"
TASK, ROUND_PASSES = "optdigits, 10 labels", 30
SEEDS = (100, 101)
LENGTHS = (1, 5, 15)
STRENGTHS = (1e-2, 1.0, 1e2)


class FreeSource(SourceStage):
    """Stage 1 without DWA2."""

    pays = None


class FreeClassify(ClassifyStage):
    """Stage 3 without DWA3."""

    pays = None


def variant_of(importance: Literal["fisher", "gfi"] | None) -> Variant:
    """Return Algorithm 1 with DWA1 as its only penalty."""
    stages = (FreeSource(), CoupledStage(), FreeClassify())
    return Variant(f"dwa1-{importance}", stages, importance=importance)


#: Name of a row: importance, basis.
ROWS: dict[str, tuple[Any, str]] = {
    "none (e)": (None, "diagonal"),
    "uniform (L2-SP)": ("uniform", "diagonal"),
    "Fisher (fi)": ("fisher", "diagonal"),
    "GFI (gfi)": ("gfi", "diagonal"),
    "Fisher, Kronecker": ("fisher", "kronecker"),
    "GFI, Kronecker": ("gfi", "kronecker"),
}
PACKAGES = ("torch", "avalanche-lib", "avalanche-cetl")


class Uniform(CETLPlugin):
    """L2-SP on T1 in stage 2: ``strength / 2 * sum (w - w0)^2``, w0 from before the stage."""

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength
        self.start: list[torch.Tensor] = []

    def before_stage(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the weights."""
        if strategy.stage is Stage.COUPLED:
            self.start = [p.detach().clone() for p in _decoder(strategy)]

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty."""
        if strategy.stage is Stage.COUPLED:
            pairs = zip(_decoder(strategy), self.start, strict=True)
            moved = sum(((p - old).square().sum() for p, old in pairs), torch.zeros(()))
            strategy.loss = strategy.loss + self.strength / 2 * moved


class Kept(CETLPlugin):
    """Measures L_rs before and after each stage 2, over the variance of the pixels."""

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.images = images
        self.before: list[float] = []
        self.after: list[float] = []

    def before_stage(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure what stage 1 left."""
        if strategy.stage is Stage.COUPLED:
            self.before.append(self._error(strategy.model))

    def after_stage(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure what stage 2 left."""
        if strategy.stage is Stage.COUPLED:
            self.after.append(self._error(strategy.model))

    @torch.no_grad()
    def _error(self, model: CoupledModel) -> float:
        training = model.training
        model.eval()
        error = (model.reconstruct_source(self.images) - self.images).square().mean()
        model.train(training)
        return round(float(error / self.images.var()), 5)


def _decoder(strategy: Any) -> list[torch.Tensor]:
    return list(strategy.model.decoder_parameters().values())


def run(row: str, strength: float, length: int, seed: int) -> dict[str, Any]:
    """Train, and return what was kept and the accuracy on validation images."""
    torch.manual_seed(seed)
    task = TASKS[TASK]
    data = task.make("", seed)
    importance, basis = ROWS[row]
    rounds = ROUND_PASSES // length
    model = CoupledModel.build(data.source, new_network(data, seed), data.shape)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    kept = Kept(data.train[0][:256])
    gfi = GFISettings()
    if basis == "kronecker":
        gfi = replace(gfi, basis="kronecker")
    uniform = importance == "uniform"
    start = time.perf_counter()
    CETLStrategy(
        model=model,
        optimizer=optimizer,
        preset="paper",
        variant=variant_of(None if uniform else importance),
        dwa_lambda=0.0 if uniform else strength,
        gfi=gfi,
        augment=task.augment,
        stage_epochs=(length, length, length),
        train_mb_size=BATCH,
        train_epochs=rounds,
        evaluator=None,
        plugins=[kept, *([Uniform(strength)] if uniform else [])],
    ).train(data.benchmark().train_stream)
    return {
        "before": kept.before,
        "after": kept.after,
        "accuracy": round(accuracy(model.target, *data.validation), 2),
        "seconds": round(time.perf_counter() - start, 1),
    }


def kept_runs() -> Runs:
    """Return the runs that are there."""
    settings = {"task": TASK, "passes": ROUND_PASSES, "batch": BATCH, "adam_lr": LEARNING_RATE}
    return Runs(FOLDER / "runs.json", ("row", "strength", "length", "seed"), settings, PACKAGES)


def table(length: int) -> str:
    """Write the rows of a length of stages in Markdown."""
    runs, lines = kept_runs().runs, []
    for row in ROWS:
        for strength in (0.0, *STRENGTHS):
            found = [
                r for r in runs if (r["row"], r["strength"], r["length"]) == (row, strength, length)
            ]
            if found:
                errors = ([r["before"][0] for r in found], [r["after"][0] for r in found],
                          [r["after"][-1] for r in found])  # fmt: skip
                lines.append(
                    [
                        row,
                        f"{strength:g}" if strength else "",
                        *map(shown, errors),
                        cell([r["accuracy"] for r in found]),
                        str(len(found)),
                    ]
                )
    header = ["importance", "strength", "L_rs before the first stage 2", "after it"]
    return markdown.table([*header, "after the last", "accuracy %", "seeds"], lines)


def shown(values: list[float]) -> str:
    """Write all values: where training runs away they differ by powers of ten."""
    return ", ".join(f"{value:.2g}" if value < 1000 else f"{value:.0e}" for value in values)


def render() -> None:
    """Write ``table.md``."""
    parts = [
        "L_rs over the variance of the pixels, seed by seed (lower is better; a constant picture "
        "has 1); accuracy on validation images; written by `python -m benchmarks.penalty`."
    ]
    for length in LENGTHS:
        if any(run["length"] == length for run in kept_runs().runs):
            passes = "1 pass" if length == 1 else f"{length} passes"
            parts += [f"**{passes} per stage**", table(length)]
    (FOLDER / "table.md").write_text("\n\n".join(parts) + "\n")


def main() -> None:
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--rows", default=";".join(ROWS), help="names, separated by ;")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = kept_runs()
    for seed in given.seeds:
        for length in given.lengths:
            for row in given.rows.split(";"):
                for strength in STRENGTHS if row != "none (e)" else (0.0,):
                    if kept.find(row, strength, length, seed) is None:
                        found: dict[str, Any] = {"row": row, "strength": strength}
                        found |= {"length": length, "seed": seed}
                        found |= run(row, strength, length, seed)
                        print(row, strength, length, seed, found["before"][-1], found["after"][-1],
                              found["accuracy"], found["seconds"], flush=True)  # fmt: skip
                        kept.add(found)
    render()


if __name__ == "__main__":
    main()
