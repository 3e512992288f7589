"""Table and figure of what came out, from the result files alone."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import markdown
from benchmarks.continual.methods import methods
from benchmarks.continual.runs import FOLDER
from benchmarks.continual.streams import STREAMS
from benchmarks.records import error, mean_and_error, read, shown_mean


def render() -> None:
    """Write the table and the figure of the streams that were run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    documents = {
        s: read(FOLDER / f"{s}.json")["runs"] for s in STREAMS if (FOLDER / f"{s}.json").exists()
    }
    measured = {run["method"] for runs in documents.values() for run in runs}
    names = [name for name in methods() if name in measured]
    count = len(documents)
    figure, grid = plt.subplots(
        1, count, figsize=(2.6 * count, 3.2), layout="constrained", squeeze=False
    )
    axes = grid[0]
    lines = [
        "Means over seeds with standard errors; written by `python -m benchmarks.continual`.",
        "",
    ]
    for (stream, runs), axis in zip(documents.items(), axes, strict=True):
        tested = {
            name: [r for r in runs if r["method"] == name and r["part"] == 2] for name in names
        }
        lines += [f"**{stream}**", "", *_table(tested), ""]
        _draw(axis, tested)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.invert_yaxis()
        axis.set_title(stream)
        axis.set_xlabel("average accuracy %")
        axis.spines[["top", "right"]].set_visible(False)
    (FOLDER / "table.md").write_text("\n".join(lines))
    figure.savefig(FOLDER / "continual.png", dpi=110)
    plt.close(figure)


def _table(tested: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Write a line for each method that was run."""
    lines = [
        "| | strength | average accuracy % | forgetting | forward transfer | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in tested.items():
        good = [r for r in rows if "failed" not in r]
        if good:
            keys = ("average_accuracy", "forgetting", "forward_transfer")
            cells = " | ".join(_mean(good, key) for key in keys)
            seconds = statistics.mean(r["seconds"] for r in good)
            lines.append(f"| {name} | {good[0]['strength']:g} | {cells} | {seconds:.1f} |")
        elif rows:
            lines.append(f"| {name} | fails: {rows[0]['failed']} | | | | |")
    return lines


def _draw(axis: Any, tested: dict[str, list[dict[str, Any]]]) -> None:
    """Draw a bar for each method, with its standard error."""
    for place, rows in enumerate(tested.values()):
        values = [r["average_accuracy"] for r in rows if "failed" not in r]
        if values:
            axis.barh(place, statistics.mean(values), xerr=error(values), color=f"C{place}")
        elif rows:
            axis.text(2, place, "fails", va="center")


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    if key not in rows[0]:
        return ""
    return mean_and_error([row[key] for row in rows], 2)


def average_accuracies() -> str:
    """Write the average accuracy of every method on every stream as a table."""
    names = list(methods())
    columns, measured = [], set()
    for stream in STREAMS:
        runs = read(FOLDER / f"{stream}.json")["runs"]
        tested = [[r for r in runs if r["method"] == n and r["part"] == 2] for n in names]
        measured |= {name for name, rows in zip(names, tested, strict=True) if rows}
        good = [[r["average_accuracy"] for r in rows if "failed" not in r] for rows in tested]
        cells = [
            mean_and_error(values) if values else "fails" if rows else "not run"
            for values, rows in zip(good, tested, strict=True)
        ]
        columns.append(markdown.bold_best(cells, [shown_mean(values) for values in good]))
    lines = [list(line) for line in zip(names, *columns, strict=True) if line[0] in measured]
    return markdown.table(["average accuracy %", *STREAMS], lines)
