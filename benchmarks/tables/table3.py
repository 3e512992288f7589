"""Table 3, how much the source network matters: CETL gfi with one S after another.

As Table 2 in all else; its baseline has no source. Sources out of torchvision are run where
their weights can be downloaded, STL-10 where it is on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from avalanche_cetl.encoders import Encoder
from benchmarks.records import accuracies, cell, paired, results
from benchmarks.tables import board, table2
from benchmarks.tables.board import Row
from benchmarks.tables.sources import (
    digits,
    downloaded,
    for_imagenet,
    of_cifar100,
    of_torchvision,
    other_classes,
    packaged,
)
from benchmarks.tables.transfer import Budget, Job, coupled, naive
from benchmarks.where import Where

TABLE = "table3"
BUDGETS = table2.BUDGETS
STL = "STL-10, "
ALONE, FINE_TUNED = "no source", "FT-VGG"
PAPER = {  # Table 3 as printed, CIFAR-10-s and STL-10
    "AlexNet": 65.33,
    "VGG-16": 65.57,
    "GoogLeNet": 65.14,
    "ResNet-50": 64.37,
    FINE_TUNED: 61.35,
    STL + ALONE: 60.52,
    STL + "AlexNet": 62.98,
    STL + "VGG-16": 62.61,
    STL + "GoogLeNet": 62.30,
    STL + "ResNet-50": 62.77,
    STL + "CI-CNN, CIFAR-100": 65.49,
    STL + FINE_TUNED: 61.17,
}
Source = Callable[[Budget, str, Where], Encoder]


def lite(size: int) -> Source:
    """EfficientNet-Lite0 to 2."""
    return lambda budget, _root, _where: packaged(f"tf_efficientnet_lite{size}", budget.image_size)


def torchvision_s(name: str) -> Source:
    """A network of torchvision."""
    return lambda _budget, _root, _where: downloaded(name)


OF_TORCHVISION = {
    "AlexNet": torchvision_s("alexnet"),
    "VGG-16": torchvision_s("vgg16"),
    "GoogLeNet": torchvision_s("googlenet"),
    "ResNet-50": torchvision_s("resnet50"),
    FINE_TUNED: torchvision_s("vgg16"),
}
SOURCES: dict[str, Source] = {
    "EfficientNet-Lite0": lite(0),
    "EfficientNet-Lite1": lite(1),
    "EfficientNet-Lite2": lite(2),
    "ResNet-26, five classes of CIFAR-10": other_classes,
    "CI-CNN, digits": digits,
    **OF_TORCHVISION,
    STL + ALONE: lite(0),
    STL + "EfficientNet-Lite0": lite(0),
    STL + "CI-CNN, CIFAR-100": of_cifar100,
    **{STL + name: source for name, source in OF_TORCHVISION.items()},
}


def cetl(job: Job, _strength: float) -> nn.Module:
    """CETL gfi as in Table 2."""
    return coupled(job, variant="gfi")


class FineTunedVGG(nn.Module):
    """VGG-16 with a new last layer, which reads standardised images."""

    def __init__(self, job: Job):
        super().__init__()
        self.pixels, self.network = job.pixels, of_torchvision("vgg16")
        torch.manual_seed(job.seed)  # of the last layer, whatever was drawn before
        layers = self.network.get_submodule("classifier")
        layers[-1] = nn.Linear(layers[-1].in_features, job.classes)  # type: ignore[operator,index]

    def forward(self, x: Tensor) -> Tensor:
        """Give logits."""
        return self.network(for_imagenet(self.pixels.restore(x)))


def fine_tuned(job: Job, _strength: float) -> nn.Module:
    """FT-VGG: the whole network trained on, with a new last layer."""
    return naive(job, FineTunedVGG(job))


def _row(name: str) -> Row:
    short = name.removeprefix(STL)
    train = {ALONE: table2.baseline, FINE_TUNED: fine_tuned}.get(short, cetl)
    if name.startswith(STL):
        changes = (("per_class", 400), ("validation_per_class", 100))  # of 500 a class
        return Row(train, scales=("full",), data="STL-10", changes=changes)
    if name in OF_TORCHVISION:
        return Row(train, scales=("full",))
    return Row(train, scales=("cpu", "full") if name[-5:] in ("Lite1", "Lite2") else board.SCALES)


ROWS = {name: _row(name) for name in SOURCES}


def source_of(row: str, budget: Budget, root: str, where: Where) -> Encoder:
    """Give the row's S."""
    return SOURCES[row](budget, root, where)


run = partial(board.run, TABLE)


def render(scale: str) -> str:
    """Give the table in Markdown, from the result files alone."""
    found, alone = results(TABLE, scale), results(table2.TABLE, scale).get("baseline", {})
    lines = [
        "| source | test accuracy % | over no source, paired | paper |",
        "| --- | --- | --- | --- |",
    ]
    for row in ROWS:
        runs = found.get(row, {})
        values = accuracies(runs)
        gains = paired(runs, found.get(STL + ALONE, {}) if row.startswith(STL) else alone)
        cells = [
            row,
            cell(values, 2, empty="not run"),
            cell(gains, 2, sign=True) if row != STL + ALONE else "",
            f"{PAPER[row]:.2f}" if row in PAPER else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
