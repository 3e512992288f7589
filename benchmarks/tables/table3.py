"""Table 3, how much the source network matters: CETL gfi with one S after another.

As Table 2 in all else; its baseline has no source. Sources out of torchvision are run where
their weights can be downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from avalanche_cetl.encoders import Encoder
from benchmarks.tables import board, table2
from benchmarks.tables.board import Row
from benchmarks.tables.runs import accuracies, cell, paired, results
from benchmarks.tables.sources import digits, downloaded, other_classes, packaged
from benchmarks.tables.transfer import Budget, Job, coupled

TABLE = "table3"
BUDGETS = table2.BUDGETS
PAPER = {  # Table 3 as printed, CIFAR-10-s
    "AlexNet": 65.33,
    "VGG-16": 65.57,
    "GoogLeNet": 65.14,
    "ResNet-50": 64.37,
}


def lite(size: int) -> Callable[[Budget, str], Encoder]:
    """EfficientNet-Lite0 to 2."""
    return lambda budget, _root: packaged(f"tf_efficientnet_lite{size}", budget.image_size)


def of_torchvision(name: str) -> Callable[[Budget, str], Encoder]:
    """A network of torchvision."""
    return lambda _budget, _root: downloaded(name)


SOURCES: dict[str, Callable[[Budget, str], Encoder]] = {
    "EfficientNet-Lite0": lite(0),
    "EfficientNet-Lite1": lite(1),
    "EfficientNet-Lite2": lite(2),
    "ResNet-26, five classes of CIFAR-10": other_classes,
    "CI-CNN, digits": digits,
    "AlexNet": of_torchvision("alexnet"),
    "VGG-16": of_torchvision("vgg16"),
    "GoogLeNet": of_torchvision("googlenet"),
    "ResNet-50": of_torchvision("resnet50"),
}


def cetl(job: Job, _strength: float) -> nn.Module:
    """CETL gfi as in Table 2."""
    return coupled(job, variant="gfi")


def _scales(name: str) -> tuple[str, ...]:
    if name in PAPER:
        return ("full",)
    return ("cpu", "full") if name[-5:] in ("Lite1", "Lite2") else ("smoke", "cpu", "full")


ROWS = {name: Row(cetl, scales=_scales(name)) for name in SOURCES}


def source_of(row: str, budget: Budget, root: str) -> Encoder:
    """The row's S."""
    return SOURCES[row](budget, root)


run = partial(board.run, TABLE)


def render(scale: str) -> str:
    """Give the table in Markdown, from the result files alone."""
    found, alone = results(TABLE, scale), results(table2.TABLE, scale).get("baseline", {})
    lines = [
        "| source | test accuracy % | over Table 2's baseline, paired | paper |",
        "| --- | --- | --- | --- |",
    ]
    for row in ROWS:
        runs = found.get(row, {})
        values = accuracies(runs)
        gains = paired(runs, alone)
        cells = [
            row,
            cell(values, 2, empty="not run"),
            cell(gains, 2, sign=True),
            f"{PAPER[row]:.2f}" if row in PAPER else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
