"""Tables and figures of what came out, from the result files alone."""

from __future__ import annotations

import statistics
import textwrap
from pathlib import Path
from typing import Any

from avalanche_cetl.evaluation import picture
from benchmarks import markdown
from benchmarks.continual.methods import methods
from benchmarks.continual.runs import FOLDER, TEST
from benchmarks.continual.streams import STREAMS
from benchmarks.records import cell, error, mean_and_error, read, shown_mean

#: Methods whose accuracy is drawn against the number of tasks, with their colours: Okabe and Ito's.
CURVES = {
    "joint": "0.6",
    "GFIPlugin()": "#D55E00",
    "GFIPlugin, Kronecker": "#E69F00",
    "EWC, online": "#0072B2",
    "EWC": "#56B4E9",
    "MAS": "#CC79A7",
    "LwF": "#009E73",
    "GFIPlugin, diagonal": "#7F7F7F",
    "Naive": "#000000",
}
#: Their marks, for those who do not see the colours.
MARKS = dict(zip(CURVES, ("", "o", "^", "s", "D", "v", "P", "X", "*"), strict=True))
#: Streams that are drawn so.
_LONG = ("permuted-10", "permuted-20", "permuted-50", "rotated")
#: Methods whose accuracies after every experience are drawn, task by task.
MATRICES = ("Naive", "EWC, online", "GFIPlugin, diagonal", "GFIPlugin()")

Runs = list[dict[str, Any]]


def tested() -> dict[str, dict[str, Runs]]:
    """Return by stream and method the runs on test images, of the streams that were run.

    One whose runs have not come to the Kronecker basis yet is left out.
    """
    found: dict[str, dict[str, Runs]] = {}
    for stream in STREAMS:
        path = FOLDER / f"{stream}.json"
        if path.exists():
            runs = [run for run in read(path)["runs"] if run["part"] == TEST]
            if any("Kronecker" in run["method"] for run in runs):
                found[stream] = {n: [r for r in runs if r["method"] == n] for n in methods()}
    return found


def render() -> None:
    """Write tables and figures of the streams that were run."""
    found = tested()
    lines = [
        "Means over seeds with standard errors; written by `python -m benchmarks.continual`.",
        "",
    ]
    for stream, rows in found.items():
        lines += [f"**{stream}**", "", *_table(rows), ""]
    (FOLDER / "table.md").write_text("\n".join(lines))
    draw(found, FOLDER)


def draw(found: dict[str, dict[str, Runs]], folder: Path) -> None:
    """Draw the pictures of the streams that were run into a folder."""
    _draw_bars(found, folder / "continual.png")
    _draw_curves(found, folder / "tasks.png")
    _draw_matrices(found, folder / "matrices.png")


def _table(rows: dict[str, Runs]) -> list[str]:
    """Write a line for each method that was run."""
    lines = [
        "| | strength | average accuracy % | forgetting | forward transfer | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in rows.items():
        good = [r for r in runs if "failed" not in r]
        if good:
            keys = ("average_accuracy", "forgetting", "forward_transfer")
            cells = " | ".join(_mean(good, key) for key in keys)
            seconds = statistics.mean(r["seconds"] for r in good)
            strength = f"{good[0]['strength']:g}" if good[0]["strength"] else "none"
            lines.append(f"| {name} | {strength} | {cells} | {seconds:.1f} |")
        elif runs:
            lines.append(f"| {name} | fails: {runs[0]['failed']} | | | | |")
    return lines


def _draw_bars(found: dict[str, dict[str, Runs]], path: Path) -> None:
    """Draw average accuracies, a panel for each stream."""
    names = [name for name in methods() if any(rows[name] for rows in found.values())]
    wide = 4
    high = -(-len(found) // wide)
    size = (2.9 * wide, 3.4 * high)
    figure, grid = picture(high, wide, size=size, squeeze=False, sharex=True, sharey=True)
    for axis in grid.flat[len(found) :]:
        axis.set_axis_off()
    for axis, (stream, rows) in zip(grid.flat, found.items(), strict=False):
        for line, name in enumerate(names):
            values = [r["average_accuracy"] for r in rows[name] if "failed" not in r]
            if values:
                color = CURVES.get(name, "0.75")
                axis.barh(line, statistics.mean(values), xerr=error(values), color=color)
            elif rows[name]:
                axis.text(2, line, "fails", va="center")
        axis.set_title(stream)
        axis.set_xlabel("average accuracy %")
        axis.tick_params(labelbottom=True)
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()  # of all: they share it
    grid[0][0].set_xlim(0, 100)
    figure.savefig(path)


def _draw_curves(found: dict[str, dict[str, Runs]], path: Path) -> None:
    """Draw the average accuracy over all tasks so far against their number."""
    chosen = [s for s in _LONG if any(found.get(s, {}).get(name) for name in CURVES)]
    if not chosen:
        return
    figure, axes = picture(1, len(chosen), size=(3.6 * len(chosen), 3.9), squeeze=False)
    drawn = {}
    for axis, stream in zip(axes[0], chosen, strict=True):
        for name, color in CURVES.items():
            runs = [r for r in found[stream][name] if "failed" not in r]
            if not runs:
                continue
            if name == "joint":
                value = statistics.mean(r["average_accuracy"] for r in runs)
                drawn[name] = axis.axhline(value, color=color, linestyle="--", marker="")
                continue
            curve = [statistics.mean(row) for row in zip(*map(so_far, runs), strict=True)]
            (drawn[name],) = axis.plot(
                range(1, len(curve) + 1),
                curve,
                color=color,
                linestyle="-",
                marker=MARKS[name],
                markevery=max(1, len(curve) // 10),
            )
        axis.set_title(stream)
        axis.set_xlabel("tasks so far")
    axes[0][0].set_ylabel("average accuracy %")
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside lower center", ncols=5, frameon=False
    )  # fmt: skip
    figure.savefig(path)


def so_far(run: dict[str, Any]) -> list[float]:
    """Return the average accuracy over all tasks so far, after each of them."""
    matrix = run["accuracy"]
    # Without heads the first row is from before the first experience.
    after = matrix if len(matrix) == len(matrix[-1]) else matrix[1:]
    return [statistics.mean(row[: k + 1]) for k, row in enumerate(after)]


def _draw_matrices(found: dict[str, dict[str, Runs]], path: Path) -> None:
    """Draw accuracies of every task after every experience, means over seeds."""
    import numpy as np

    rows = found.get("permuted-10") or next(iter(found.values()), {})
    names = [n for n in MATRICES if any("failed" not in r for r in rows.get(n, []))]
    if not names:
        return
    size = (2.7 * len(names) + 0.6, 3.3)
    figure, axes = picture(1, len(names), size=size, squeeze=False, sharey=True)
    shown = None
    for axis, name in zip(axes[0], names, strict=True):
        runs = [r["accuracy"] for r in rows[name] if "failed" not in r]
        count = len(runs[0][-1])
        grid = np.full((count, count), np.nan)
        for k in range(count):
            for j in range(k + 1):
                grid[k, j] = statistics.mean(run[k - count][j] for run in runs)
        shown = axis.imshow(grid, vmin=40, vmax=100)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("task")
        axis.set_xticks(range(count), range(1, count + 1))
        axis.set_yticks(range(count), range(1, count + 1))
    axes[0][0].set_ylabel("after experience")
    figure.colorbar(shown, ax=axes[0][-1], label="accuracy %")
    figure.savefig(path)


def _mean(rows: Runs, key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return cell(values)


def average_accuracies() -> str:
    """Write the average accuracy of every method on every stream as a table.

    Joint training is none of the methods: it is not compared.
    """
    found = tested()
    columns, measured = [], set()
    names = list(methods())
    for rows in found.values():
        measured |= {name for name in names if rows[name]}
        good = {n: [r["average_accuracy"] for r in rows[n] if "failed" not in r] for n in names}
        cells = [mean_and_error(good[n]) if good[n] else "fails" if rows[n] else "" for n in names]
        ranked = [None if n == "joint" else shown_mean(good[n]) for n in names]
        columns.append(markdown.bold_best(cells, ranked))
    lines = [list(line) for line in zip(names, *columns, strict=True) if line[0] in measured]
    return markdown.table(["average accuracy %", *found], lines)


#: Avalanche's own plugins that keep no images.
REGULARISERS = ("EWC", "EWC, online", "LwF", "SI", "MAS", "RWalk")

_OURS = {
    "GFIPlugin()": "as the plugin comes",
    "GFIPlugin, Kronecker": "at its best strength with the proximal step",
    "GFIPlugin, Kronecker, in the loss": "with the penalty in the loss",
}
_BESIDE = {
    "GFIPlugin, diagonal": "the exact diagonal",
    "joint": "joint training on all tasks at once",
}


def gains() -> str:
    """Write what the Kronecker basis gains on permuted tasks over the best of Avalanche's."""
    found = tested()
    sentences = []
    for stream, many in (
        ("permuted-10", "ten"),
        ("permuted-20", "twenty"),
        ("permuted-50", "fifty"),
    ):
        if stream not in found:
            continue
        values = {
            name: [run["average_accuracy"] for run in runs if "failed" not in run]
            for name, runs in found[stream].items()
        }
        rivals = [name for name in REGULARISERS if values[name]]
        if not rivals:
            continue
        best = max(rivals, key=lambda name: statistics.mean(values[name]))
        shown = {name: mean_and_error(value) for name, value in values.items() if value}
        ours = [f"{shown[name]} % {words}" for name, words in _OURS.items() if name in shown]
        rest = [f"{words} {shown[name]} %" for name, words in _BESIDE.items() if name in shown]
        sentence = (
            f"After {many} permuted tasks the Kronecker basis keeps {' and '.join(ours)}; of "
            f"Avalanche's own plugins that were run the best ({best}) keeps {shown[best]} %"
        )
        sentences.append(", ".join([sentence, *rest]) + ".")
    return textwrap.fill(" ".join(sentences), 100, break_long_words=False, break_on_hyphens=False)
