"""The runs of the suite: strengths of rivals on development tasks, then all seeds, each once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from avalanche_cetl.evaluation import information_maximization
from benchmarks.methods.plain import accuracy, logits
from benchmarks.records import RESULTS, Runs
from benchmarks.suite.rows import ROWS
from benchmarks.suite.tasks import BATCH, LEARNING_RATE, TASKS, WIDTH, Data

FOLDER = RESULTS / "suite"
PACKAGES = ("torch", "timm", "avalanche-lib", "avalanche-cetl", "skada")
KEYS = ("row", "strength", "seed", "part")
#: The seed of runs that choose.
CHOOSING = 100
VALIDATION, TEST = "validation", "test"
S_ITSELF = "S itself"


def kept_runs(name: str) -> Runs:
    """Return the runs of a task that are there."""
    task = TASKS[name]
    settings = {
        "task": name, "development": task.development, "rounds": task.rounds, "width": WIDTH,
        "batch": BATCH, "adam_lr": LEARNING_RATE, "views": task.augment.__name__,
    }  # fmt: skip
    safe = name.replace(",", "").replace(" ", "-")
    return Runs(FOLDER / f"{safe}.json", KEYS, settings, PACKAGES)


class Runner:
    """Runs what is not there yet of a task.

    :param root: folder of the data sets.
    """

    def __init__(self, name: str, root: str):
        self.name, self.task, self.root, self.kept = name, TASKS[name], root, kept_runs(name)
        self._data: dict[int, Data] = {}

    def find(self, row: str, strength: float, seed: int, part: str) -> dict[str, Any]:
        """Return a run, made once."""
        found = self.kept.find(row, strength, seed, part)
        if found is not None:
            return found
        if seed not in self._data:
            self._data[seed] = self.task.make(self.root, seed)
        found = {"row": row, "strength": strength, "seed": seed, "part": part}
        found |= _run(self.name, row, self._data[seed], seed, strength, part)
        print(self.name, *found.values(), sep=" | ", flush=True)
        self.kept.add(found)
        return found


def run_task(name: str, root: str, rows: Sequence[str] = (), part: str = TEST) -> None:
    """Run the rows of a task that are not there yet, their strengths being chosen.

    :param rows: names; none: all.
    :param part: ``"validation"``: one run with the choosing seed, measured on validation images.
    """
    runner = Runner(name, root)
    for row in rows or (*ROWS, S_ITSELF):
        if row == S_ITSELF:
            if runner.task.same_classes:
                runner.find(S_ITSELF, 0.0, 0, part)
        elif ROWS[row].fits(runner.task):
            strength = chosen(row)
            for seed in (CHOOSING,) if part == VALIDATION else runner.task.seeds:
                runner.find(row, strength, seed, part)


def choosing_tasks(row: str) -> list[str]:
    """Return the tasks that a row's strength is chosen on; none where there is no choice."""
    if len(ROWS[row].strengths) == 1:
        return []
    return [
        name
        for name, task in TASKS.items()
        if task.development and task.rivals_choose and ROWS[row].fits(task)
    ]


def try_strengths(root: str, rows: Sequence[str]) -> None:
    """Run every strength of rows that have several, on development tasks."""
    for name in TASKS:
        runner = Runner(name, root)
        for row in rows:
            if name in choosing_tasks(row):
                for strength in ROWS[row].strengths:
                    runner.find(row, strength, CHOOSING, VALIDATION)


def chosen(row: str) -> float:
    """Return a row's strength: of its grid the best on the development tasks.

    By the mean over tasks of the validation accuracy with the choosing seed.
    """
    strengths = ROWS[row].strengths
    found = dict.fromkeys(strengths, 0.0)
    for name in choosing_tasks(row):
        kept = kept_runs(name)
        for strength in strengths:
            run = kept.find(row, strength, CHOOSING, VALIDATION)
            if run is None:
                raise ValueError(f"{row} has no run on {name} with strength {strength:g}.")
            found[strength] += run["accuracy"]
    return max(strengths, key=lambda strength: found[strength])


def _run(name: str, row: str, data: Data, seed: int, strength: float, part: str) -> dict[str, Any]:
    """Train, and measure on the images of a part."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    measured = data.validation if part == VALIDATION else data.test
    if row == S_ITSELF:
        with torch.no_grad():
            classes = data.source.classify(data.source(measured[0])).argmax(1)
        return {"accuracy": round(100 * float((classes == measured[1]).float().mean()), 2)}
    network = ROWS[row].train(TASKS[name], data, seed, strength)
    seconds = round(time.perf_counter() - start, 1)
    found: dict[str, Any] = {"accuracy": round(accuracy(network, *measured), 2), "seconds": seconds}
    if part == VALIDATION:  # information maximisation, which reads no label, for comparison
        found["score"] = round(float(information_maximization(logits(network, data.train[0]))), 4)
    return found
