"""How well scores without target labels follow target accuracy.

`python -m benchmarks.validators --data-root DIR [--directions MN-US US-MN]` trains CETL without
target labels over a grid of settings, and after every round reads the accuracy on the target's
test images beside each score of the same images, which sees no label. It reports Spearman's rank
correlation of score and accuracy: over the rounds of a run (mean over settings), over the last
rounds of all settings, and over everything; and the accuracy of the network that the score
chooses, beside the best there is.

Protocol, fixed before any figure was read: the data of ``benchmarks/data/digits.py``, seed 0; S is
a CI-CNN of width 0.5 trained on the source for 15 epochs, T2 one of width 0.25; variant gfi, 30 %
of T2's input pixels off in stage 2. Grid: learning rate 3e-4, 1e-3, 3e-3; weight of L_rt 0 (no
adaptation), 0.3, 1, 3. Higher is better for every score (the bound and the entropy are negated).

Results go to ``benchmarks/results/validators/DIRECTION.json``, run by run, so that a stopped run
goes on; ``--render`` writes ``table.md`` and ``validators.png`` from those files alone.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CoupledModel,
    GFISettings,
    ModuleEncoder,
    bound_metrics,
    validator_metrics,
)
from avalanche_cetl.evaluation import LINE_STYLES, picture
from benchmarks.data.digits import COUNTS, DIRECTIONS, as_benchmark, read_pair
from benchmarks.data.views import JitterOne
from benchmarks.records import RESULTS, Runs, read

FOLDER = RESULTS / "validators"
PACKAGES = ("torch", "avalanche-lib", "avalanche-cetl")
GRID = {"learning_rate": (3e-4, 1e-3, 3e-3), "rt_weight": (0.0, 0.3, 1.0, 3.0)}
SHAPE = (1, 28, 28)
SETTINGS = {
    "seed": 0, "source_width": 0.5, "source_epochs": 15, "source_lr": 1e-3, "width": 0.25,
    "batch": 64, "warmup_epochs": 10, "rounds": 10, "variant": "gfi", "dwa_lambda": 0.03,
    "gfi_samples": 64, "input_noise": 0.3,
}  # fmt: skip
SCORES = (
    "SourceAccuracy", "NegativeEntropy", "InformationMaximization", "SoftNeighborhoodDensity",
    "NegativeBound",
)  # fmt: skip


def source_network(benchmark: Any) -> ModuleEncoder:
    """Train S on the source images."""
    s: dict[str, Any] = SETTINGS
    torch.manual_seed(s["seed"])
    network = CICNN(10, SHAPE, width=s["source_width"])
    Naive(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), s["source_lr"]),
        train_mb_size=s["batch"],
        train_epochs=s["source_epochs"],
        evaluator=None,
    ).train(benchmark.source_stream)
    return ModuleEncoder(network, input_shape=SHAPE)


def strategy_of(model: CoupledModel, rate: float, weight: float, warmup: int) -> CETLStrategy:
    """Make the strategy of one setting; it trains one round at a time."""
    s: dict[str, Any] = SETTINGS
    metrics = [accuracy_metrics(stream=True), validator_metrics(), bound_metrics(error=True)]
    return CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), rate),
        preset="paper",
        variant=s["variant"],
        loss_weights=(1.0, 1.0, weight),
        dwa_lambda=s["dwa_lambda"],
        gfi=GFISettings(samples=s["gfi_samples"]),
        input_noise=s["input_noise"],
        warmup_epochs=warmup,
        train_mb_size=s["batch"],
        eval_mb_size=500,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
    )


def rounds(benchmark: Any, warm: CoupledModel, rate: float, weight: float) -> list[dict[str, Any]]:
    """Train one setting; return accuracy and scores after every round."""
    model = copy.deepcopy(warm)
    torch.manual_seed(SETTINGS["seed"])
    strategy = strategy_of(model, rate, weight, 0)
    rows = []
    own = [row[:2] for row in benchmark.source_test_stream[0].dataset]
    for _ in range(int(SETTINGS["rounds"])):
        strategy.train(benchmark.train_stream)
        found = _of("test_stream", strategy.eval(benchmark.test_stream))
        rows.append(
            {
                "accuracy": found.pop("Top1_Acc_Stream"),
                "SourceAccuracy": _accuracy(model, own),
                "NegativeBound": -found["Bound_Exp"],
                **{name.removesuffix("_Exp"): value for name, value in found.items()},
            }
        )
    return rows


@torch.no_grad()
def _accuracy(model: CoupledModel, rows: list[Any]) -> float:
    model.eval()
    images, labels = torch.stack([x for x, _ in rows]), torch.tensor([int(y) for _, y in rows])
    predicted = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return float((predicted == labels).float().mean())


def _of(stream: str, found: dict[str, float]) -> dict[str, float]:
    """Return the metrics of one stream by name; Avalanche returns those read before too."""
    return {name.split("/")[0]: v for name, v in found.items() if name.split("/")[2] == stream}


def kept_runs(direction: str) -> Runs:
    """Return the runs of a direction that are there."""
    settings = SETTINGS | {"grid": GRID, "counts": COUNTS}
    return Runs(FOLDER / f"{direction}.json", tuple(GRID), settings, PACKAGES)


def run(direction: str, root: str) -> None:
    """Run what is missing of one direction."""
    kept = kept_runs(direction)
    missing = [cell for cell in itertools.product(*GRID.values()) if kept.find(*cell) is None]
    if not missing:
        return
    pair = read_pair(direction, root, COUNTS, int(SETTINGS["seed"]))
    benchmark = as_benchmark(pair, train_transform=JitterOne())
    source = source_network(benchmark)
    torch.manual_seed(int(SETTINGS["seed"]))
    target = CICNN(10, SHAPE, width=float(SETTINGS["width"]))
    warm = CoupledModel.build(source, target, SHAPE)
    warming = strategy_of(warm, 1e-3, 1.0, int(SETTINGS["warmup_epochs"]))
    warming.train_epochs = 0
    warming.train(benchmark.train_stream)
    for rate, weight in missing:
        start = time.perf_counter()
        rows = rounds(benchmark, warm, rate, weight)
        kept.add(
            {
                "learning_rate": rate,
                "rt_weight": weight,
                "rounds": rows,
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(direction, rate, weight, f"{100 * rows[-1]['accuracy']:.1f} %", flush=True)


# ------------------------------------------------------------------ tables


def correlations(runs: list[dict[str, Any]], score: str) -> dict[str, float]:
    """Compute Spearman's rank correlation of a score with accuracy, and what it chooses."""
    from scipy.stats import spearmanr

    def rank(rows: list[dict[str, float]]) -> float:
        found = spearmanr([row[score] for row in rows], [row["accuracy"] for row in rows])
        return float(found.statistic)

    everything = [row for one in runs for row in one["rounds"]]
    within = [rank(one["rounds"]) for one in runs]
    return {
        "rounds": sum(within) / len(within),
        "settings": rank([one["rounds"][-1] for one in runs]),
        "all": rank(everything),
        "chosen": max(everything, key=lambda row: row[score])["accuracy"],
        "best": max(row["accuracy"] for row in everything),
        "median": sorted(row["accuracy"] for row in everything)[len(everything) // 2],
    }


def render() -> str:
    """Write table.md and validators.png from the JSON files alone."""
    found = [d for d in DIRECTIONS if (FOLDER / f"{d}.json").exists()]
    lines = [
        "| direction | score | over rounds | over settings | all | chosen by it | best, median |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for direction in found:
        runs = read(FOLDER / f"{direction}.json")["runs"]
        for score in SCORES:
            row = correlations(runs, score)
            lines.append(
                f"| {direction} | {score} | {row['rounds']:+.2f} | {row['settings']:+.2f} | "
                f"{row['all']:+.2f} | {100 * row['chosen']:.1f} % | {100 * row['best']:.1f}, "
                f"{100 * row['median']:.1f} % |"
            )
    draw(found, FOLDER / "validators.png")
    table = "\n".join(lines) + "\n"
    (FOLDER / "table.md").write_text(table)
    return table


def draw(directions: Sequence[str], path: Path) -> None:
    """Draw accuracies against scores, a point a round, a style for each weight of L_rt."""
    size = (3 * len(SCORES), 2.8 * len(directions))
    figure, grid = picture(len(directions), len(SCORES), size=size, squeeze=False, sharey="row")
    for direction, axes in zip(directions, grid, strict=True):
        runs = read(FOLDER / f"{direction}.json")["runs"]
        weights = sorted({one["rt_weight"] for one in runs})
        for score, axis in zip(SCORES, axes, strict=True):
            for one in runs:
                style = LINE_STYLES[weights.index(one["rt_weight"])]
                axis.plot(
                    [r[score] for r in one["rounds"]],
                    [100 * r["accuracy"] for r in one["rounds"]],
                    linestyle="",
                    marker=style.marker,
                    markersize=3.5,
                    alpha=0.6,
                    color=style.color,
                    label=f"weight of L_rt: {one['rt_weight']:g}",
                )
            correlation = correlations(runs, score)["all"]
            axis.set_title(f"{direction}, {score}\nrank correlation {correlation:+.2f}", fontsize=8)
            axis.tick_params(labelsize=7)
        axes[0].set_ylabel("target accuracy, %")
    labels = dict(zip(*grid[0][0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    figure.savefig(path)


def main() -> None:
    """Run and render."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=DIRECTIONS)
    parser.add_argument("--render", action="store_true", help="tables and figure only")
    args = parser.parse_args()
    if not args.render:
        if args.data_root is None:
            raise SystemExit("give --data-root DIR (with MNIST and USPS), or set CETL_DATA.")
        for direction in args.directions:
            run(direction, args.data_root)
    print(render())


if __name__ == "__main__":
    main()
