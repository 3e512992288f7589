"""Run the demo over several seeds and write its table: `python -m benchmarks.demo_seeds`.

Every run leaves its whole ``results.json`` in ``benchmarks/results/demo/seed-N.json``; a seed
that has one already is not run again. The table ``benchmarks/results/demo/table.md`` is made
from those files alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.records import RESULTS, mean_and_error, read

FOLDER = RESULTS / "demo"


def run(seeds: list[int]) -> None:
    """Run the demo for each seed that has no result yet."""
    from avalanche_cetl.demo.run import run_demo

    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        result = FOLDER / f"seed-{seed}.json"
        if result.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            run_demo(folder, seed=seed)
            shutil.copy(Path(folder) / "results.json", result)


def table() -> str:
    """Return mean and standard error over seeds as Markdown, from the JSON files alone."""
    runs = [read(path) for path in sorted(FOLDER.glob("seed-*.json"))]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    lines = [f"Means over seeds {seeds}, with standard errors.", ""]
    titles = {"few_labels": "10 labels a class", "unsupervised": "no target label"}
    for block, title in titles.items():
        baseline = "target network alone" if block == "few_labels" else "source only"
        lines += [
            f"| {title} | target accuracy % | against {baseline} | source accuracy % | seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        columns = {row["method"]: [] for row in runs[0][block]}
        for run_ in runs:
            for row in run_[block]:
                columns[row["method"]].append(row)
        reference = [row["target_accuracy"] for row in columns[baseline]]
        for method, rows in columns.items():
            target = [row["target_accuracy"] for row in rows]
            gain = [a - b for a, b in zip(target, reference, strict=True)]
            source = [row["source_accuracy"] for row in rows]
            seconds = statistics.mean(row["seconds"] for row in rows)
            cells = [
                method,
                mean_and_error(target, 2),
                mean_and_error(gain, 2, sign=True),
                mean_and_error(source, 2),
                f"{seconds:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    gfi = [run_["few_labels"][-1] for run_ in runs]
    lines.append(
        "Reconstruction error of CETL gfi (few labels) on held-out target images over their pixel "
        f"variance: T1(S(x)) {mean_and_error([r['source_error'] for r in gfi], 3)}, "
        f"T1(T2(x)) {mean_and_error([r['target_error'] for r in gfi], 3)}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    run(parser.parse_args().seeds)
    (FOLDER / "table.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
