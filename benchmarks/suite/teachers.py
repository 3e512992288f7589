"""Which probe T2 should listen to: ``python -m benchmarks.suite.teachers --data-root DIR``.

Development tasks were run on their validation images, to choose; tasks kept back on their test
images, after everything was fixed. Each row takes one step of the labels and of the probe's soft
targets (variant ``"direct"``), but for the first, which has the labels alone, and the last,
``CETLStrategy`` as it comes. ``benchmarks/results/suite/teachers.json`` has every run,
``teachers.md`` means.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import (
    CICNN,
    PrecomputedEncoder,
    SoftTargets,
    TimmEncoder,
    linear_probe,
)
from avalanche_cetl.plugins import Batch
from benchmarks import markdown
from benchmarks.data.views import jitter, views
from benchmarks.methods.plain import accuracy
from benchmarks.methods.sources import SVHNNetwork
from benchmarks.records import cell
from benchmarks.suite.rows import cetl
from benchmarks.suite.runs import FOLDER, PACKAGES, Runs
from benchmarks.suite.tasks import (
    BATCH,
    LEARNING_RATE,
    WIDTH,
    Data,
    Task,
    few_digits,
    pair,
    photographs,
)

Make = Callable[[str, int], Data]
#: Makes features of images.
Features = Callable[[Tensor, str], Tensor]


# ------------------------------------------------------------------ other source networks


@cache
def _efficientnet() -> TimmEncoder:
    return TimmEncoder("tf_efficientnet_lite0", weights="package", image_size=96)


def imagenet(images: Tensor, _root: str) -> Tensor:
    """Return EfficientNet-Lite0's features, of grey images too."""
    found = [_efficientnet()(part) for part in images.expand(-1, 3, -1, -1).split(64)]
    return torch.cat(found)


def untrained(images: Tensor, _root: str) -> Tensor:
    """Return features of a CI-CNN that was never trained: a source that knows little."""
    torch.manual_seed(5)
    network = CICNN(10, tuple(images.shape[1:]), width=0.25).eval()
    with torch.no_grad():
        return torch.cat([network.features(part).flatten(1) for part in images.split(256)])


def svhn(images: Tensor, root: str) -> Tensor:
    """Return the hidden layer of a network that was trained on SVHN (data root, ``svhn-cnn``)."""
    network = SVHNNetwork(root)
    with torch.no_grad():
        return torch.cat([network.hidden(part) for part in images.split(256)])


def seen_by(features: Features, make: Make) -> Make:
    """Return what makes a task's data with another S."""

    def made(root: str, seed: int) -> Data:
        data = make(root, seed)
        return replace(data, source=PrecomputedEncoder(features(data.train[0], root)))

    return made


# ------------------------------------------------------------------ tasks and rows


def _digits(make: Make, development: bool = True, rounds: int = 12) -> Task:
    return Task(make, "few", development, rounds, jitter)


def _photographs(labels: int, more: int, development: bool, rounds: int) -> Task:
    return Task(photographs(labels, more), "few", development, rounds, views, False)


def _usps(labels: int) -> Make:
    return pair("MN", "US", True, labels)


TASKS = {
    "optdigits, 3 labels": _digits(few_digits(3)),
    "optdigits, 10 labels": _digits(few_digits(10)),
    "optdigits, 50 labels": _digits(few_digits(50)),
    "USPS, 10 labels": _digits(_usps(10), rounds=8),
    "optdigits, 3 labels, ImageNet": _digits(seen_by(imagenet, few_digits(3))),
    "optdigits, 5 labels, ImageNet": _digits(seen_by(imagenet, few_digits(5))),
    "optdigits, 3 labels, S untrained": _digits(seen_by(untrained, few_digits(3))),
    "optdigits, 10 labels, S untrained": _digits(seen_by(untrained, few_digits(10))),
    "USPS, 3 labels, S untrained": _digits(seen_by(untrained, _usps(3)), rounds=8),
    "USPS, 10 labels, S untrained": _digits(seen_by(untrained, _usps(10)), rounds=8),
    "CIFAR-10, 20 labels": _photographs(20, 0, True, 20),
    "CIFAR-10, 20 labels, 100 more": _photographs(20, 100, True, 10),
    "CIFAR-10, 3 labels, 100 more": _photographs(3, 100, True, 12),
    "MNIST, 3 labels, S of SVHN": _digits(
        seen_by(svhn, pair("US", "MN", True, 3)), development=False, rounds=8
    ),
    "MNIST, 10 labels, S of SVHN": _digits(
        seen_by(svhn, pair("US", "MN", True, 10)), development=False, rounds=8
    ),
    "USPS, 5 labels, ImageNet": _digits(seen_by(imagenet, _usps(5)), development=False, rounds=8),
    "USPS, 10 labels, ImageNet": _digits(seen_by(imagenet, _usps(10)), development=False, rounds=8),
    "CIFAR-10, 50 labels, 100 more": _photographs(50, 100, False, 10),
}


class _Standardised(nn.Module):
    """A probe whose logits have mean 0 and deviation 1 in each row."""

    def __init__(self, probe: nn.Module):
        super().__init__()
        self.probe = probe

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.probe(features)
        return (found - found.mean(1, keepdim=True)) / found.std(1, keepdim=True).clamp_min(1e-6)


class BySureness(SoftTargets):
    """Soft targets whose rows count by how sure the teacher is of them.

    :param least: rows count where the largest probability is above it; None: by the square of 1
        minus the entropy over its largest value.
    """

    def __init__(self, least: float | None, **options: Any):
        super().__init__(**options)
        self.least = least

    def loss(self, strategy: Any, batch: Batch) -> Tensor:
        """Return the loss of a mini-batch."""
        teacher = self.teacher_logits(strategy, batch)
        logs = teacher.log_softmax(1)
        share = 1 + (logs.exp() * logs).sum(1) / logs.new_tensor(logs.shape[1]).log()
        sure = share**2 if self.least is None else (logs.exp().amax(1) > self.least).float()
        t = self.temperature
        apart = F.kl_div(
            (batch.logits / t).log_softmax(1), (teacher / t).log_softmax(1),
            reduction="none", log_target=True,
        ).sum(1)  # fmt: skip
        return t * t * (sure * apart).mean()


@dataclass(frozen=True)
class Teacher:
    """A row: a probe's C (None: chosen), and the soft targets of it.

    :ivar falls: whether the weight falls to 0 over the rounds.
    :ivar sure: how rows count, see :class:`BySureness`; 0: all alike.
    :ivar by_labels: whether the weight is less with more than 10 labels per class, as the preset's.
    """

    c: float | None = None
    weight: float = 3.0
    temperature: float = 2.0
    falls: bool = False
    standardised: bool = False
    sure: float | None = 0.0
    by_labels: bool = False

    def plugin(self, data: Data) -> SoftTargets:
        """Return the plugin, its probe being fitted."""
        known = data.train[1] >= 0
        features = (
            data.source.streams["train"][0]
            if isinstance(data.source, PrecomputedEncoder)
            else data.source(data.train[0])
        )
        weight = self.weight
        if self.by_labels:
            labelled = int(known.sum())
            weight *= min(1.0, len(known) / labelled * 10 / (labelled / 10))
        head: nn.Module = linear_probe(features[known], data.train[1][known], self.c)
        options: dict[str, Any] = {
            "weight": weight, "temperature": self.temperature, "rows": "target",
            "head": _Standardised(head) if self.standardised else head, "anneal": self.falls,
        }  # fmt: skip
        return SoftTargets(**options) if self.sure == 0 else BySureness(self.sure, **options)


AS_IT_COMES = "CETL as it comes"
ROWS: dict[str, Teacher | None] = {
    "T2 alone": None,
    "version 0.2: C=1e-3, weight 10": Teacher(1e-3, 10.0, by_labels=True),
    **{f"C chosen, weight {w:g}": Teacher(weight=w) for w in (0.3, 1, 3, 10)},
    "C chosen, weight 3, falling": Teacher(falls=True),
    "C=1e-3, logits standardised, weight 10": Teacher(1e-3, 10.0, standardised=True),
    "C chosen, weight 3, rows above 0.8": Teacher(sure=0.8),
    "C chosen, weight 3, by entropy": Teacher(sure=None),
    AS_IT_COMES: None,
}


def run(task: Task, row: str, data: Data, seed: int) -> dict[str, Any]:
    """Train a row; measure it on validation images, or on test images of a task kept back."""
    teacher = ROWS[row]
    plugins = [] if teacher is None else [teacher.plugin(data)]
    settings = {"preset": "best"} if row == AS_IT_COMES else {"variant": "direct"}
    torch.manual_seed(seed)
    start = time.perf_counter()
    network = cetl(task, data, seed, plugins, **settings)
    seconds = round(time.perf_counter() - start, 1)
    part = data.validation if task.development else data.test
    return {"accuracy": round(accuracy(network, *part), 2), "seconds": seconds}


def kept_runs() -> Runs:
    """Return the runs that are there."""
    settings = {"width": WIDTH, "batch": BATCH, "adam_lr": LEARNING_RATE}
    return Runs(FOLDER / "teachers.json", ("task", "row", "seed"), settings, PACKAGES)


def table() -> str:
    """Write means and standard errors over seeds, a row for each task, in Markdown."""
    runs = kept_runs().runs
    parts = []
    for development, title in ((True, "Development, validation"), (False, "Kept back, test")):
        chosen = {n: t for n, t in TASKS.items() if t.development == development}
        rows = [row for row in ROWS if any(r["row"] == row and r["task"] in chosen for r in runs)]
        lines = []
        for name in chosen:
            of = {
                row: [r["accuracy"] for r in runs if (r["task"], r["row"]) == (name, row)]
                for row in rows
            }
            lines.append([name, *(cell(values) for values in of.values())])
        parts.append(markdown.table([f"{title} accuracy %", *rows], lines))
    return "\n\n".join(parts) + "\n"


def run_missing(kept: Runs, tasks: dict[str, Task], given: Any, run: Callable[..., Any]) -> None:
    """Run what is not there yet, task by task.

    :param kept: the runs that are there, by task, row and seed.
    :param given: the command line's: ``tasks`` and ``rows``, separated by ;, ``seeds`` by commas,
        and ``data_root``.
    :param run: takes a task, a row, the task's data and a seed; returns figures.
    """
    torch.set_num_threads(1)
    for seed in map(int, given.seeds.split(",")):
        for name in filter(None, given.tasks.split(";")):
            rows = [r for r in given.rows.split(";") if r and not kept.find(name, r, seed)]
            data = tasks[name].make(given.data_root, seed) if rows else None
            for row in rows:
                found = {"task": name, "row": row, "seed": seed}
                found |= run(tasks[name], row, data, seed)
                print(*found.values(), sep=" | ", flush=True)
                kept.add(found)


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--tasks", default="", help="names, separated by ;")
    parser.add_argument("--rows", default="", help="names, separated by ;")
    parser.add_argument("--seeds", default="100,101", help="numbers, separated by commas")
    given = parser.parse_args(arguments)
    run_missing(kept_runs(), TASKS, given, run)
    (FOLDER / "teachers.md").write_text(table())


if __name__ == "__main__":
    main()
