"""The page of the suite, from the result files alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import markdown
from benchmarks.records import cell, read, shown_mean
from benchmarks.suite.rows import ROWS
from benchmarks.suite.runs import FOLDER, S_ITSELF, TEST, chosen, kept_runs
from benchmarks.suite.tasks import TASKS

ALONE, SOFT, DEFAULTS, BEST = "T2 alone", "soft targets", "CETL, defaults", "CETL, preset best"
RIVALS = (*(name for name in ROWS if name.endswith("SKADA")), "AdaMatch")
_ALL = (*ROWS, S_ITSELF)
#: Tasks by the table that they stand in.
_HARDER = tuple(name for name in TASKS if "SVHN" in name or "views" in name)
GROUPS = {
    "Development tasks": [n for n in TASKS if TASKS[n].development and n not in _HARDER],
    "Tasks kept back": [n for n in TASKS if not TASKS[n].development and n not in _HARDER],
    "S of SVHN, and stronger views": _HARDER,
}
#: Earlier presets: the file of their accuracies, and the head of the column.
EARLIER = {
    "preset.json": "at first",
    "centroids.json": "before the class centroids",
}


def tested(name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of a task that count, by row, in the order of their seeds.

    Rows that lack a seed are left out, and runs with a strength that is not the chosen one. Some
    are there from when the strengths of rivals were chosen in another way.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    tests = [run for run in kept_runs(name).runs if run["part"] == TEST]
    strengths = {row: chosen(row) for row in {run["row"] for run in tests} - {S_ITSELF}}
    for run in sorted(tests, key=lambda run: run["seed"]):
        if run["row"] == S_ITSELF or run["strength"] == strengths[run["row"]]:
            found.setdefault(run["row"], []).append(run)
    return {
        row: runs
        for row, runs in found.items()
        if row == S_ITSELF or len(runs) == len(TASKS[name].seeds)
    }


def accuracies(runs: list[dict[str, Any]]) -> list[float]:
    """Return the accuracies of a row's runs."""
    return [run["accuracy"] for run in runs]


def differences(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[float]:
    """Return the paired differences in accuracy of two rows."""
    return [a - b for a, b in zip(accuracies(first), accuracies(second), strict=True)]


def table(names: Sequence[str]) -> str:
    """Write tasks of the suite in Markdown, without rows that are for none of them.

    A task whose test images were not read has no column.
    """
    found = {name: runs for name in names if (runs := tested(name))}
    names = list(found)
    lines = []
    columns = {}
    for name in names:
        runs = found[name]
        cells = [cell(accuracies(runs.get(row, []))) for row in _ALL]
        cells = [
            text or markdown.NOT_RUN if _fits(name, row) else ""
            for row, text in zip(_ALL, cells, strict=True)
        ]
        means = [shown_mean(accuracies(runs.get(row, []))) for row in _ALL]
        columns[name] = markdown.bold_best(cells, means)
    for number, row in enumerate(_ALL):
        if not any(columns[name][number] for name in names):
            continue
        spent = [
            run["seconds"] / statistics.mean(r["seconds"] for r in found[name][SOFT])
            for name in names
            for run in found[name].get(row, [])
            if "seconds" in run and SOFT in found[name]
        ]
        cost = f"{statistics.mean(spent):.1f}" if spent else ""
        lines.append([row, *(columns[name][number] for name in names), cost])
    header = ["test accuracy %", *names, "seconds, times soft targets"]
    return markdown.table(header, lines, measured=range(1, len(names) + 1))


def _fits(name: str, row: str) -> bool:
    """Return whether a row is of a task."""
    task = TASKS[name]
    return task.same_classes if row == S_ITSELF else ROWS[row].fits(task)


def verdict() -> str:
    """Write which of the bars hold, task by task."""
    lines = []
    for name, task in TASKS.items():
        runs = tested(name)
        if BEST not in runs:
            continue
        cells = [name, "development" if task.development else "kept back"]
        cells.append(_over(runs, DEFAULTS, [ALONE]))
        cells.append(_over(runs, BEST, [row for row in ROWS if ROWS[row].single]))
        cells.append(_over(runs, BEST, RIVALS))
        lines.append(cells)
    header = [
        "paired difference ± standard error",
        "",
        "defaults over T2 alone",
        "preset best over the best single ingredient",
        "preset best over the best rival",
    ]
    return markdown.table(header, lines)


def _over(runs: dict[str, Any], row: str, others: Any) -> str:
    """Write the difference of a row from the best of others."""
    there = [one for one in others if one in runs]
    if row not in runs or not there:
        return ""
    best = max(there, key=lambda one: statistics.mean(accuracies(runs[one])))
    told = "" if len(there) == 1 else f" ({best})"
    return cell(differences(runs[row], runs[best]), sign=True) + told


def before() -> str:
    """Write what earlier presets had, beside what the preset has now."""
    old = {file: read(FOLDER / "before" / file)["runs"] for file in EARLIER}
    lines = []
    for name, task in TASKS.items():
        values = [[run["accuracy"] for run in runs if run["task"] == name] for runs in old.values()]
        if any(values):
            now = accuracies(tested(name).get(BEST, []))
            kind = "development" if task.development else "kept back"
            lines.append([name, kind, *map(cell, (*values, now))])
    return markdown.table(["test accuracy %", "", *EARLIER.values(), "now"], lines)


def render() -> None:
    """Write ``table.md``."""
    parts = [
        "Means over three seeds with standard errors (one seed where there is no error); "
        "written by `python -m benchmarks.suite`.",
        *(part for name, tasks in GROUPS.items() for part in (f"**{name}**", table(tasks))),
        "**What holds**", verdict(),
        "**Preset best before it was changed**", before(),
    ]  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "table.md").write_text("\n\n".join(parts) + "\n")
