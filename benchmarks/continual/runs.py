"""The runs of a stream: strengths on validation images, then the test images, once a seed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.continual.methods import Method, methods, network
from benchmarks.continual.streams import STREAMS, Part, Stream, Task, data_of
from benchmarks.records import RESULTS, Runs

FOLDER = RESULTS / "continual"
VALIDATION_SEEDS = (100, 101)
#: Strengths that are tried beyond the first three, at most, where the best is the last of them.
FURTHER = 4
PACKAGES = ("avalanche-lib", "torch", "avalanche-cetl")
#: Values by which a run is found again.
KEYS = ("method", "strength", "seed", "part")
VALIDATION, TEST = 1, 2

Find = Callable[[str, float, int, int], dict[str, Any]]


def kept_runs(name: str, data: str) -> Runs:
    """Return the runs of a stream that are there, of some data (:func:`data_of`)."""
    settings = STREAMS[name].settings | {"data": data, "validation_seeds": VALIDATION_SEEDS}
    return Runs(FOLDER / f"{name}.json", KEYS, settings, PACKAGES)


def run_stream(name: str, root: str | None, seeds: int | None = None, only: str = "") -> None:
    """Choose strengths on validation images, then run the seeds; skip what is there.

    :param seeds: fewer than the stream has.
    :param only: names of methods, separated by ``;``; empty: those of the stream.
    """
    stream = STREAMS[name]
    kept = kept_runs(name, data_of(stream, root))
    tasks: dict[int, list[Task]] = {}

    def find(method: str, strength: float, seed: int, part: int) -> dict[str, Any]:
        row = kept.find(method, strength, seed, part)
        if row is not None:
            return row
        if seed not in tasks:
            tasks[seed] = stream.tasks(root, seed)
        row = {"stream": name, "method": method, "strength": strength, "seed": seed, "part": part}
        try:
            shown = tasks[seed][: stream.chosen_on or None] if part == VALIDATION else tasks[seed]
            row |= run(stream, method, strength, seed, shown, part)
        except Exception as problem:  # as shipped: a method that fails is a result
            row |= {"failed": f"{type(problem).__name__}: {str(problem)[:160]}"}
        value = row.get("average_accuracy", row.get("failed"))
        print(name, method, strength, seed, value, flush=True)
        kept.add(row)
        return row

    chosen = [one for one in only.split(";") if one] or list(stream.only) or list(methods())
    chosen = [one for one in chosen if one not in stream.without]
    for method in chosen:
        best = strength_of(method, methods()[method], find)
        for seed in range(stream.seeds if seeds is None else min(seeds, stream.seeds)):
            find(method, best, seed, TEST)


def strength_of(name: str, method: Method, find: Find) -> float:
    """Choose a strength by its mean accuracy on the validation streams.

    Three are tried, each ``method.factor`` from the next; where the best is at an end, one more
    beyond it, until it is not or ``FURTHER`` more were tried. Of equal ones the smallest is taken.
    A method that fails has none to choose.
    """
    if method.start is None:
        return 0.0
    tried: dict[float, float] = {}

    def mean(strength: float) -> float:
        runs = [find(name, strength, seed, VALIDATION) for seed in VALIDATION_SEEDS]
        return statistics.mean(run.get("average_accuracy", -1.0) for run in runs)

    for power in (0, -1, 1):
        strength = float(f"{method.start * method.factor**power:.6g}")
        tried[strength] = mean(strength)
        if tried[strength] < 0:
            return strength
    for _ in range(FURTHER):
        if len(set(tried.values())) == 1:
            break
        best = _best(tried)
        if best == max(tried):
            further = best * method.factor
        elif best == min(tried):
            further = best / method.factor
        else:
            break
        tried[float(f"{further:.6g}")] = mean(float(f"{further:.6g}"))
    return _best(tried)


def _best(tried: dict[float, float]) -> float:
    """Return the strength of the highest accuracy, the smallest of equal ones."""
    return min(tried, key=lambda strength: (-tried[strength], strength))


def run(
    stream: Stream, name: str, strength: float, seed: int, tasks: list[Task], part: int
) -> dict[str, Any]:
    """Train over the stream and return accuracies on its validation or its test images."""
    strategy = _strategy(stream, methods()[name].plugins(strength, stream), seed)
    model, together = strategy.model, name == "joint"
    matrix = []
    if not stream.heads:  # heads do not exist yet there
        matrix.append([accuracy(model, stream, task[part], k) for k, task in enumerate(tasks)])
    spent = 0.0
    experiences = _joint(stream, tasks) if together else _benchmark(stream, tasks)
    for k, experience in enumerate(experiences):
        start = time.perf_counter()
        strategy.train(experience)
        spent += time.perf_counter() - start
        # Tasks to come: the next alone, for what was transferred to it.
        seen = len(tasks) if together else min(len(tasks), k + 1 if stream.heads else k + 2)
        matrix.append([accuracy(model, stream, tasks[j][part], j) for j in range(seen)])
    result: dict[str, Any] = {"seconds": round(spent, 2)}
    if part == TEST:  # of validation the summary is enough, and files stay small
        result["accuracy"] = _rounded(matrix)
    return result | summary(matrix, stream.heads, together)


def _rounded(matrix: list[list[float]]) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in matrix]


def cut_from_tensors() -> Any:
    """Return Avalanche's plain training, whose mini-batches are cut from tensors."""
    from avalanche.training.supervised import Naive

    class Cut(Naive):
        """Naive training; a batch is read at once and not image by image."""

        def make_train_dataloader(self, shuffle: bool = True, **kwargs: Any) -> None:
            assert self.experience is not None
            self.dataloader = _Batches(self.experience.dataset, self.train_mb_size)

    return Cut


def _strategy(stream: Stream, plugins: list[Any], seed: int) -> Any:
    """Make Avalanche's plain training, whose mini-batches are cut from tensors."""
    model = network(stream, seed)
    return cut_from_tensors()(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), stream.settings["adam_lr"]),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=stream.batch,
        train_epochs=stream.epochs,
        plugins=plugins,
        evaluator=None,
    )


class _Batches:
    """The shuffled mini-batches of an experience: images, labels, task labels."""

    def __init__(self, dataset: Any, size: int):
        self.parts: list[Part] = dataset.parts
        self.labels, self.size = dataset.labels, size

    def __len__(self) -> int:
        return -(-sum(map(len, self.parts)) // self.size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        owner = torch.cat([torch.full((len(p),), k) for k, p in enumerate(self.parts)])
        place = torch.cat([torch.arange(len(part)) for part in self.parts])
        for rows in torch.randperm(len(owner)).split(self.size):
            taken = [(k, place[rows[owner[rows] == k]]) for k in owner[rows].unique().tolist()]
            yield [
                torch.cat([self.parts[k].batch(own) for k, own in taken]),
                torch.cat([self.parts[k].y[own] for k, own in taken]),
                torch.cat([torch.full((len(own),), self.labels[k]) for k, own in taken]),
            ]


def _dataset(parts: list[Part], labels: list[int]) -> Any:
    from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
    from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels

    targets = torch.cat([part.y for part in parts]).tolist()
    tasks = [label for part, label in zip(parts, labels, strict=True) for _ in range(len(part))]
    data = parts[0] if len(parts) == 1 else torch.utils.data.ConcatDataset(parts)
    dataset = TaskAwareSupervisedClassificationDataset(
        [data], data_attributes=[DataAttribute(targets, "targets"), TaskLabels(tasks)]
    )
    dataset.parts, dataset.labels = parts, labels
    return dataset


def _stream_of(sets: list[Any]) -> Any:
    from avalanche.benchmarks import (
        benchmark_from_datasets,
        with_classes_timeline,
        with_task_labels,
    )

    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=sets))).train_stream


def _benchmark(stream: Stream, tasks: list[Task]) -> Any:
    """Return one experience for each task."""
    labels = [k if stream.heads else 0 for k in range(len(tasks))]
    return _stream_of([_dataset([t[0]], [k]) for t, k in zip(tasks, labels, strict=True)])


def _joint(stream: Stream, tasks: list[Task]) -> Any:
    """Return one experience with all tasks' images."""
    labels = [k if stream.heads else 0 for k in range(len(tasks))]
    return _stream_of([_dataset([task[0] for task in tasks], labels)])


@torch.no_grad()
def accuracy(model: nn.Module, stream: Stream, images: Part, task: int) -> float:
    """Compute the accuracy in per cent."""
    model.eval()
    right = 0
    for rows in torch.arange(len(images)).split(1000):
        labels = (torch.full((len(rows),), task),) if stream.heads else ()
        out = model(images.batch(rows), *labels)
        right += int((out.argmax(1) == images.y[rows]).sum())
    return 100 * right / len(images)


def summary(matrix: list[list[float]], heads: bool, together: bool = False) -> dict[str, float]:
    """Compute average accuracy, forgetting, and transfer where untrained tasks can be read.

    :param matrix: accuracies after each experience; without heads also before the first.
    :param together: all tasks were one experience: nothing can be forgotten.
    """
    after = matrix if heads else matrix[1:]
    last = after[-1]
    result = {"average_accuracy": statistics.mean(last)}
    if together:
        return result
    lost = [max(row[j] for row in after if len(row) > j) - last[j] for j in range(len(last) - 1)]
    result["forgetting"] = statistics.mean(lost)
    if not heads:
        gains = [matrix[j][j] - matrix[0][j] for j in range(1, len(last))]
        result["forward_transfer"] = statistics.mean(gains)
    return result
