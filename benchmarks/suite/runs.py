"""The runs of the suite: strengths of rivals without labels, then every seed, each once."""

from __future__ import annotations

import time
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
#: The seed of runs that choose, and those of runs that count.
CHOOSING, SEEDS = 100, (0, 1, 2)
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


def run_task(name: str, root: str, rows: tuple[str, ...] = (), part: str = TEST) -> None:
    """Run the rows of a task that are not there yet.

    :param rows: names; none: all.
    :param part: ``"validation"``: one run with the choosing seed, measured on validation images.
    """
    task, kept = TASKS[name], kept_runs(name)
    data: dict[int, Data] = {}

    def find(row: str, strength: float, seed: int, part: str) -> dict[str, Any]:
        found = kept.find(row, strength, seed, part)
        if found is not None:
            return found
        if seed not in data:
            data[seed] = task.make(root, seed)
        found = {"row": row, "strength": strength, "seed": seed, "part": part}
        found |= _run(name, row, data[seed], seed, strength, part)
        print(name, *found.values(), sep=" | ", flush=True)
        kept.add(found)
        return found

    seeds = (CHOOSING,) if part == VALIDATION else SEEDS
    for row in rows or (*ROWS, S_ITSELF):
        if row == S_ITSELF:
            if task.same_classes:
                find(S_ITSELF, 0.0, 0, part)
            continue
        if task.kind not in ROWS[row].kinds:
            continue
        strengths = ROWS[row].strengths
        best = strengths[0]
        if len(strengths) > 1:
            tried = {s: find(row, s, CHOOSING, VALIDATION)["score"] for s in strengths}
            best = max(strengths, key=lambda s: tried[s])
        for seed in seeds:
            find(row, best, seed, part)


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
    if part == VALIDATION:  # what rivals choose by; it reads no label
        found["score"] = round(float(information_maximization(logits(network, data.train[0]))), 4)
    return found
