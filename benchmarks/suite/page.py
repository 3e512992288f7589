"""The page of the suite, from the result files alone."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import markdown
from benchmarks.records import cell, read, shown_mean
from benchmarks.suite.rows import ROWS
from benchmarks.suite.runs import FOLDER, S_ITSELF, SEEDS, TEST, chosen, kept_runs
from benchmarks.suite.tasks import TASKS

ALONE, SOFT, DEFAULTS, BEST = "T2 alone", "soft targets", "CETL, defaults", "CETL, preset best"
RIVALS = tuple(name for name in ROWS if name.endswith("SKADA"))
_ALL = (*ROWS, S_ITSELF)


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
    return {row: runs for row, runs in found.items() if row == S_ITSELF or len(runs) == len(SEEDS)}


def accuracies(runs: list[dict[str, Any]]) -> list[float]:
    """Return the accuracies of a row's runs."""
    return [run["accuracy"] for run in runs]


def differences(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[float]:
    """Return the paired differences in accuracy of two rows."""
    return [a - b for a, b in zip(accuracies(first), accuracies(second), strict=True)]


def table(development: bool) -> str:
    """Write one half of the suite in Markdown."""
    names = [name for name, task in TASKS.items() if task.development is development]
    found = {name: tested(name) for name in names}
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
    return task.same_classes if row == S_ITSELF else task.kind in ROWS[row].kinds


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
    """Write what the preset had before its last change, beside what it has now."""
    old = read(FOLDER / "before" / "preset.json")["runs"]
    lines = []
    for name, task in TASKS.items():
        values = [run["accuracy"] for run in old if run["task"] == name]
        if values:
            kind = "development" if task.development else "kept back"
            lines.append([name, kind, cell(values), cell(accuracies(tested(name).get(BEST, [])))])
    return markdown.table(["test accuracy %", "", "preset best, before", "now"], lines)


def render() -> None:
    """Write ``table.md``."""
    parts = [
        "Means over three seeds with standard errors; written by `python -m benchmarks.suite`.",
        "**Development tasks**", table(True), "**Tasks kept back**", table(False),
        "**What holds**", verdict(),
        "**The preset before its last change**", before(),
    ]  # fmt: skip
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "table.md").write_text("\n\n".join(parts) + "\n")
