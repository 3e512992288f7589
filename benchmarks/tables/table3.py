"""Table 3, how much the source network matters: CETL gfi with one S after another, and as it comes.

As Table 2 in all else; its baseline has no source. Sources out of torchvision are run where
their weights can be downloaded, STL-10 where it is on disk.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks import markdown
from benchmarks.methods import cetl, fine_tuning, plain
from benchmarks.methods.sources import (
    Source,
    digits,
    downloaded,
    efficientnet_lite,
    of_cifar100,
    other_classes,
)
from benchmarks.records import accuracies, cell, paired, shown_mean
from benchmarks.tables import table2
from benchmarks.tables.photographs import Photographs
from benchmarks.tables.rows import NOW, SCALES, Row, by_id

STL = "STL-10"
PAPER = {  # Table 3 as printed, CIFAR-10-s and STL-10
    "alexnet": 65.33,
    "vgg16": 65.57,
    "googlenet": 65.14,
    "resnet50": 64.37,
    "ft_vgg": 61.35,
    "stl10_no_source": 60.52,
    "stl10_alexnet": 62.98,
    "stl10_vgg16": 62.61,
    "stl10_googlenet": 62.30,
    "stl10_resnet50": 62.77,
    "stl10_cifar100": 65.49,
    "stl10_ft_vgg": 61.17,
}


def _row(id: str, title: str, source: Source, *scales: str) -> Row:
    """Return CETL gfi as in Table 2, with this S."""
    return Row(id, title, cetl.printed("gfi"), source=source, scales=scales or SCALES)


def _now(row: Row) -> Row:
    """Return CETL as it comes with the same S."""
    title = f"{row.title}, CETL as it comes"
    return replace(NOW, id=f"now_{row.id}", title=title, source=row.source, scales=("cpu", "full"))


def _on_stl(row: Row) -> Row:
    """Return the same row on STL-10, which has 500 images a class."""
    return replace(
        row,
        id=f"stl10_{row.id}",
        title=f"{STL}, {row.title}",
        data=STL,
        scales=("full",),
        changes=(("per_class", 400), ("validation_per_class", 100)),
    )


LITE0 = _row("lite0", "EfficientNet-Lite0", efficientnet_lite(0))
TRAINED_HERE = (
    _row("five_classes", "ResNet-26, five classes of CIFAR-10", other_classes),
    _row("digits", "CI-CNN, digits", digits),
    _row("cifar100", "CI-CNN, CIFAR-100", of_cifar100, "cpu", "full"),
)
OF_TORCHVISION = (
    _row("alexnet", "AlexNet", downloaded("alexnet"), "full"),
    _row("vgg16", "VGG-16", downloaded("vgg16"), "full"),
    _row("googlenet", "GoogLeNet", downloaded("googlenet"), "full"),
    _row("resnet50", "ResNet-50", downloaded("resnet50"), "full"),
    replace(
        _row("ft_vgg", "FT-VGG", downloaded("vgg16"), "full"), method=fine_tuning.fine_tuned_vgg
    ),
)
ROWS = by_id(
    LITE0,
    _row("lite1", "EfficientNet-Lite1", efficientnet_lite(1), "cpu", "full"),
    _row("lite2", "EfficientNet-Lite2", efficientnet_lite(2), "cpu", "full"),
    *TRAINED_HERE,
    *OF_TORCHVISION,
    *(_now(row) for row in (LITE0, *TRAINED_HERE)),
    _on_stl(Row("no_source", "no source", plain.labels_alone)),
    _on_stl(LITE0),
    _on_stl(_row("cifar100", "CI-CNN, CIFAR-100", of_cifar100)),
    *(_on_stl(row) for row in OF_TORCHVISION),
)


class Table3(Photographs):
    """Accuracy with each source beside the paper's, and the gain over none."""

    def render(self, scale: str) -> str:
        """Write the table in Markdown, from the result files alone."""
        found = self.results(scale)
        none = {
            "CIFAR-10": table2.TABLE.results(scale).get(table2.ROWS["baseline"].title, {}),
            STL: found.get(ROWS["stl10_no_source"].title, {}),
        }
        lines, means = [], []
        for row in self.rows.values():
            runs = found.get(row.title, {})
            means.append(shown_mean(accuracies(runs)))
            gains = paired(runs, none[row.data]) if row.id != "stl10_no_source" else []
            lines.append(
                [
                    row.title,
                    cell(accuracies(runs), empty=markdown.NOT_RUN),
                    cell(gains, sign=True),
                    f"{PAPER[row.id]:.2f}" if row.id in PAPER else "",
                ]
            )
        markdown.bold_column(lines, 1, means, [row.data for row in self.rows.values()])
        return markdown.table(
            ["source", "test accuracy %", "over no source, paired", "paper"], lines, measured=[1]
        )


TABLE = Table3("table3", ROWS, table2.BUDGETS, source=table2.TABLE.source)
