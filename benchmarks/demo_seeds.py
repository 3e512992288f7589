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
from pathlib import Path
from typing import Any

from benchmarks import markdown
from benchmarks.records import RESULTS, mean_and_error, read, shown_mean

FOLDER = RESULTS / "demo"


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


BLOCKS = (  # title and the row that the others are held against
    ("few_labels", "10 labels a class", "target network alone"),
    ("unsupervised", "no target label", "source only"),
)


def table() -> str:
    """Return mean and standard error over seeds as Markdown, from the JSON files alone."""
    runs = [read(path) for path in sorted(FOLDER.glob("seed-*.json"))]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    gfi = [run["few_labels"][-1] for run in runs]
    return "\n\n".join(
        [
            f"Means over seeds {seeds}, with standard errors.",
            *(_block([run[block] for run in runs], *names) for block, *names in BLOCKS),
            "Reconstruction error of CETL gfi (few labels) on held-out target images over their "
            f"pixel variance: T1(S(x)) {mean_and_error([r['source_error'] for r in gfi], 3)}, "
            f"T1(T2(x)) {mean_and_error([r['target_error'] for r in gfi], 3)}.\n",
        ]
    )


def _block(runs: list[list[dict[str, Any]]], title: str, baseline: str) -> str:
    """Write one of the demo's blocks; the best accuracies are in bold."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in itertools.chain(*runs):
        methods.setdefault(row["method"], []).append(row)
    reference = [row["target_accuracy"] for row in methods[baseline]]
    lines, means = [], []
    for method, rows in methods.items():
        target, source = ([row[f"{of}_accuracy"] for row in rows] for of in ("target", "source"))
        gain = [a - b for a, b in zip(target, reference, strict=True)]
        means.append([shown_mean(values, 2) for values in (target, source)])
        lines.append(
            [
                method,
                mean_and_error(target, 2),
                mean_and_error(gain, 2, sign=True),
                mean_and_error(source, 2),
                f"{statistics.mean(row['seconds'] for row in rows):.1f}",
            ]
        )
    for column, values in zip((1, 3), zip(*means, strict=True), strict=True):
        markdown.bold_column(lines, column, values)
    header = [title, "target accuracy %", f"against {baseline}", "source accuracy %", "seconds"]
    return markdown.table(header, lines)


def main() -> None:
    """Run and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    run(parser.parse_args().seeds)
    (FOLDER / "table.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
