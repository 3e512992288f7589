"""Run the demo over several seeds and write its table: `python -m benchmarks.demo_seeds`.

Every run leaves its whole ``results.json`` in ``benchmarks/results/demo/seed-N.json``; a seed
that has one already is not run again. The table ``benchmarks/results/demo/table.md`` is made
from those files alone.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.records import RESULTS, Runs, mean_and_error, read, shown_mean

FOLDER = RESULTS / "demo"
PACKAGES = ("torch", "avalanche-lib", "avalanche-cetl")


def run(seeds: list[int]) -> None:
    """Run the demo for each seed that has no result yet."""
    from avalanche_cetl.demo import run_demo

    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        result = FOLDER / f"seed-{seed}.json"
        if result.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            run_demo(folder, seed=seed)
            shutil.copy(Path(folder) / "results.json", result)
            if seed == 0:
                for picture in Path(folder).glob("*.png"):
                    shutil.copy(picture, FOLDER)


#: What is chosen: the field of the settings, the start of the grid, and its step.
STRENGTHS = {
    "T2, soft targets": ("soft_weight", 1.0, 3.0),
    "EWC": ("ewc_lambda", 100.0, 10.0),
    "LwF": ("lwf_alpha", 1.0, 3.0),
    "stream: EWC": ("ewc", 100.0, 10.0),
    "stream: EWC, online": ("ewc_online", 100.0, 10.0),
    "stream: LwF": ("lwf", 1.0, 3.0),
    "stream: GFIPlugin, diagonal": ("diagonal", 1.0, 10.0),
}


def choose() -> dict[str, float]:
    """Choose strengths on validation images, and write all that was tried to a file."""
    import torch

    from avalanche_cetl.demo import validation_digits
    from benchmarks.continual.methods import Method
    from benchmarks.continual.runs import strength_of

    torch.set_num_threads(1)
    kept = Runs(FOLDER / "strengths.json", ("method", "strength", "seed"), {}, PACKAGES)
    digits = validation_digits()
    comparisons: dict[int, Any] = {}

    def find(name: str, strength: float, seed: int, _part: int) -> dict[str, Any]:
        row = kept.find(name, strength, seed)
        if row is None:
            row = {"method": name, "strength": strength, "seed": seed}
            found = _validated(digits, name, strength, seed, comparisons)
            row["average_accuracy"] = round(found, 3)
            print(*row.values(), flush=True)
            kept.add(row)
        return row

    return {
        name: strength_of(name, Method(lambda *_: [], start, factor), find)
        for name, (_, start, factor) in STRENGTHS.items()
    }


def _validated(
    digits: Any, name: str, strength: float, seed: int, comparisons: dict[int, Any]
) -> float:
    """Return a method's accuracy on validation images."""
    from avalanche_cetl.demo import Comparison, PermutedDigits, Settings

    settings, field = Settings(), STRENGTHS[name][0]
    if name.startswith("stream: "):
        stream = replace(settings.stream, **{field: strength})
        rows = PermutedDigits(digits, seed, replace(settings, stream=stream))
        return rows.run(name.removeprefix("stream: ")).averages[-1]
    if seed not in comparisons:
        comparisons[seed] = Comparison(digits, seed, settings)
        comparisons[seed].train_source()
    comparison = comparisons[seed]
    comparison.settings = replace(settings, **{field: strength})
    soft = name.startswith("T2")
    result = comparison.soft_targets() if soft else comparison.fine_tuning(name)
    return float(result.target_accuracy)


def table() -> str:
    """Return mean and standard error over seeds as Markdown, from the JSON files alone."""
    runs = [read(path) for path in sorted(FOLDER.glob("seed-*.json"))]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    count = len(runs[0]["stream"][0]["averages"])
    accuracies = ("target accuracy %", "source accuracy %")
    over = ("accuracy over all %", "accuracy on the first %")
    blocks: list[tuple[str, tuple[str, str, str], str, Any]] = [
        ("few_labels", ("10 labels per class", *accuracies), "T2 alone", _accuracies),
        ("no_target_label", ("no target label", *accuracies), "T2, source only", _accuracies),
        ("stream", (f"{count} permutations", *over), "EWC", _last),
    ]
    coupled = [row for run in runs for row in run["few_labels"] if row["method"] == "CETL gfi"]
    return "\n\n".join(
        [
            f"Means over seeds {seeds}, with standard errors. Higher is better for accuracies and "
            "differences, and the best accuracies are bold; fewer seconds are better.",
            *(_block([run[name] for run in runs], *block) for name, *block in blocks),
            "Error of T1's reconstructions of test images over the variance of their pixels, CETL "
            "gfi, few labels (lower is better): "
            f"T1(S(x)) {mean_and_error([r['source_error'] for r in coupled], 3)}, "
            f"T1(T2(x)) {mean_and_error([r['target_error'] for r in coupled], 3)}.\n",
        ]
    )


def by_method(runs: list[list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a block of all runs, by method."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in itertools.chain(*runs):
        methods.setdefault(row["method"], []).append(row)
    return methods


def _accuracies(row: dict[str, Any]) -> tuple[float, float]:
    """Return the two accuracies of a row of the first two blocks, in the table's order."""
    return row["target_accuracy"], row["source_accuracy"]


def _last(row: dict[str, Any]) -> tuple[float, float]:
    """Return those of a row of the stream: over all experiences, and on the first."""
    return row["averages"][-1], row["first"][-1]


def _block(
    runs: list[list[dict[str, Any]]],
    heads: tuple[str, str, str],
    baseline: str,
    of: Callable[[dict[str, Any]], tuple[float, float]],
) -> str:
    """Write one of the demo's blocks.

    :param heads: the block's title, and the names of its two accuracies.
    :param baseline: the row that the others are held against.
    :param of: returns a row's two accuracies.
    """
    methods = by_method(runs)
    reference = [of(row)[0] for row in methods[baseline]]
    lines, means = [], []
    for method, rows in methods.items():
        values = [list(column) for column in zip(*map(of, rows), strict=True)]
        gain = [a - b for a, b in zip(values[0], reference, strict=True)]
        means.append([shown_mean(column) for column in values])
        lines.append(
            [
                method,
                mean_and_error(values[0]),
                mean_and_error(gain, sign=True),
                mean_and_error(values[1]),
                f"{statistics.mean(row['seconds'] for row in rows):.1f}",
                rows[0].get("note", ""),
            ]
        )
    for column, best in zip((1, 3), zip(*means, strict=True), strict=True):
        markdown.bold_column(lines, column, best)
    title, first, second = heads
    return markdown.table([title, first, f"against {baseline}", second, "seconds", ""], lines)


def main() -> None:
    """Run and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--choose", action="store_true", help="strengths, on validation images")
    given = parser.parse_args()
    if given.choose:
        for name, strength in choose().items():
            print(f"{name}: {strength:g}")
        return
    run(given.seeds)
    (FOLDER / "table.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
