"""The runs of a stream: strengths on validation images, then the test images, once a seed."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from benchmarks.continual.methods import HIDDEN, methods, network
from benchmarks.continual.streams import TRAIN, Task, tasks_of
from benchmarks.data.draws import Set
from benchmarks.records import RESULTS, Runs

FOLDER = RESULTS / "continual"
VALIDATION_SEED = 100
SETTINGS = {
    "hidden": HIDDEN, "epochs": 5, "batch": 32, "adam_lr": 1e-3, "images_per_class": TRAIN
}  # fmt: skip
PACKAGES = ("avalanche-lib", "torch", "avalanche-cetl")
#: Values by which a run is found again.
KEYS = ("method", "strength", "seed", "part")


def kept_runs(stream: str, data: str) -> Runs:
    """Return the runs of a stream that are there, on ``"MNIST"`` or ``"MNIST-5k"``."""
    return Runs(FOLDER / f"{stream}.json", KEYS, SETTINGS | {"data": data}, PACKAGES)


def run_stream(stream: str, root: str | None, seeds: int) -> None:
    """Choose strengths on validation images, then run the seeds; skip what is there."""
    kept = kept_runs(stream, "MNIST" if root else "MNIST-5k")

    def find(name: str, strength: float, seed: int, part: int, tasks: list[Task]) -> Any:
        row = kept.find(name, strength, seed, part)
        if row is not None:
            return row
        try:
            row = run(stream, name, strength, seed, tasks, part)
        except Exception as problem:  # as shipped: a method that fails is a result
            row = {"stream": stream, "method": name, "strength": strength, "seed": seed}
            row |= {"part": part, "failed": f"{type(problem).__name__}: {str(problem)[:160]}"}
        shown = row.get("average_accuracy", row.get("failed"))
        print(stream, name, strength, seed, shown, flush=True)
        kept.add(row)
        return row

    validation = tasks_of(stream, root, VALIDATION_SEED)
    tests = [tasks_of(stream, root, seed) for seed in range(seeds)]
    for name, (_, strengths) in methods().items():
        tried = [
            (find(name, s, VALIDATION_SEED, 1, validation).get("average_accuracy", -1.0), s)
            for s in (strengths if len(strengths) > 1 else ())
        ]
        best = max(tried)[1] if tried else strengths[0]
        for seed, tasks in enumerate(tests):
            find(name, best, seed, 2, tasks)


def run(stream: str, name: str, strength: float, seed: int, tasks: list[Task], part: int) -> Any:
    """Train over the stream and return accuracies: ``part`` 1 reads validation images, 2 test."""
    from avalanche.benchmarks import (
        benchmark_from_datasets,
        with_classes_timeline,
        with_task_labels,
    )
    from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
    from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
    from avalanche.training.supervised import Naive

    sets = []
    for k, ((x, y), _, _) in enumerate(tasks):
        label = k if stream == "split-task" else 0
        attributes = [DataAttribute(y.tolist(), "targets"), TaskLabels([label] * len(y))]
        data = torch.utils.data.TensorDataset(x, y)
        sets.append(TaskAwareSupervisedClassificationDataset([data], data_attributes=attributes))
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=sets)))
    model = network(stream, tasks[0][0][0].shape[-1], seed)
    plugin = methods()[name][0](strength)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), SETTINGS["adam_lr"]),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=SETTINGS["batch"],
        train_epochs=SETTINGS["epochs"],
        plugins=[plugin] if plugin is not None else [],
        evaluator=None,
    )
    matrix = []
    if stream != "split-task":  # heads do not exist yet there
        matrix.append([accuracy(model, stream, task[part], k) for k, task in enumerate(tasks)])
    start = time.perf_counter()
    spent = 0.0
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        spent = time.perf_counter() - start
        seen = len(tasks) if stream != "split-task" else k + 1
        matrix.append([accuracy(model, stream, tasks[j][part], j) for j in range(seen)])
        start = time.perf_counter() - spent
    result = {"stream": stream, "method": name, "strength": strength, "seed": seed, "part": part}
    return result | {"accuracy": matrix, "seconds": spent} | summary(matrix, stream)


@torch.no_grad()
def accuracy(model: nn.Module, stream: str, images: Set, task: int) -> float:
    """Compute the accuracy in per cent."""
    model.eval()
    x, y = images
    labels = (torch.full((len(x),), task),) if stream == "split-task" else ()
    out = model(x, *labels)
    return 100 * float((out.argmax(1) == y).float().mean())


def summary(matrix: list[list[float]], stream: str) -> dict[str, float]:
    """Compute average accuracy, forgetting, and transfer where untrained tasks can be read."""
    after = matrix if stream == "split-task" else matrix[1:]
    last = after[-1]
    lost = [max(row[j] for row in after if len(row) > j) - last[j] for j in range(len(last) - 1)]
    result = {"average_accuracy": statistics.mean(last), "forgetting": statistics.mean(lost)}
    if stream != "split-task":
        gains = [matrix[j][j] - matrix[0][j] for j in range(1, len(last))]
        result["forward_transfer"] = statistics.mean(gains)
    return result
