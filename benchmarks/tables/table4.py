"""Table 4, distillation on CIFAR-10: teacher ResNet-26, student CI-CNN, one budget for all.

Protocol as in Table 2 (draw, views, validation for strengths, last epoch), with the teacher, which
is trained on the same images, in the place of S. Scale ``full`` reads 4,500 images a class and
chooses on the other 500; of CIFAR-100, where it is on disk, 450 and 50.

CIFAR-100-s, at scale ``cpu``, are 100 images a class of CIFAR-100; the teacher has 30 epochs, and
strengths are those that were chosen on CIFAR-10.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

from benchmarks import markdown
from benchmarks.methods import cetl, distillation, fsp, plain
from benchmarks.methods.distillation import of_teacher
from benchmarks.methods.sources import WithTeacher, teacher
from benchmarks.records import accuracies, cell, shown_mean
from benchmarks.tables import table2
from benchmarks.tables.photographs import Photographs
from benchmarks.tables.rows import NOW, Row, as_it_comes, by_id
from benchmarks.tables.table2 import MIXED, MORE_WEIGHTS, WEIGHTS

HUNDRED = "CIFAR-100"
SMALL_HUNDRED = "CIFAR-100-s"
PAPER = {  # Table 4 as printed; which of the middle three is which is inferred
    "teacher": 91.86,
    "student": 87.55,
    "soft_targets": 88.45,
    "fitnets": 88.57,
    "fsp": 88.70,
    "cetl_gfi": 89.11,
    "cifar100_teacher": 65.23,
    "cifar100_student": 60.71,
    "cifar100_soft_targets": 61.03,
    "cifar100_fitnets": 61.28,
    "cifar100_fsp": 63.33,
    "cifar100_cetl_gfi": 64.83,
}


def ends(row: Row) -> tuple[str, str]:
    """Return the ids of a row's teacher and student alone, between which the others are."""
    kind = row.id.split("_")[0]
    prefix = f"{kind}_" if kind.startswith("cifar100") else ""
    return f"{prefix}teacher", f"{prefix}student"


def _budget(scale: str, teacher_epochs: int, **changes: int) -> WithTeacher:
    return WithTeacher(**(asdict(table2.BUDGETS[scale]) | changes), teacher_epochs=teacher_epochs)


BUDGETS = {
    "smoke": _budget("smoke", 1),
    "cpu": _budget("cpu", 100),
    "full": _budget("full", 100, per_class=4500, validation_per_class=500),
}
FROM_LOWER = (0.03, 0.1, *WEIGHTS)
OF_CIFAR10 = (
    Row("teacher", "teacher", distillation.the_teacher),
    Row("student", "student", plain.labels_alone),
    Row("soft_targets", "soft targets", distillation.soft_targets(of_teacher), FROM_LOWER),
    Row("fitnets", "FitNets", distillation.fitnets, (0.1, *WEIGHTS, 10.0)),
    Row("fsp", "FSP", fsp.train, FROM_LOWER),
    Row(
        "soft_targets_mixed",
        "soft targets, mixed images",
        distillation.soft_targets_on_all(of_teacher),
        MORE_WEIGHTS,
        mixed=MIXED,
    ),
    Row("cetl_e", "CETL e", cetl.printed("e")),
    Row("cetl_fi", "CETL fi", cetl.printed("fi")),
    Row("cetl_gfi", "CETL gfi", cetl.printed("gfi")),
    NOW,
    *as_it_comes(("warmup_epochs", "gfi_samples")),
    *(
        Row(
            f"best_mixed_{variant}",
            f"CETL {variant}, preset best, mixed images",
            cetl.best_on_mixed(variant, of_teacher),
            (*MORE_WEIGHTS, 30.0),
            tuned_as="best_mixed_gfi",
            mixed=MIXED,
            preset="best",
        )
        for variant in ("e", "fi", "gfi")
    ),
)


def _on_cifar100(row: Row) -> Row:
    """Return the same row on CIFAR-100, which has 500 images a class."""
    return replace(
        row,
        id=f"cifar100_{row.id}",
        title=f"{HUNDRED}, {row.title}",
        tuned_as=None if row.tuned_as is None else f"cifar100_{row.tuned_as}",
        data=HUNDRED,
        scales=("full",),
        changes=(("per_class", 450), ("validation_per_class", 50)),
        source=partial(teacher, data_set=HUNDRED),
    )


def _on_few_of_cifar100(row: Row) -> Row:
    """Return the same row on 100 images a class of CIFAR-100, its strength chosen on CIFAR-10."""
    chosen_as = row.id if len(row.strengths) > 1 and row.tuned_as is None else row.tuned_as
    return replace(
        row,
        id=f"cifar100s_{row.id}",
        title=f"{SMALL_HUNDRED}, {row.title}",
        tuned_as=chosen_as,
        data=HUNDRED,
        scales=("cpu",),
        changes=(("per_class", 100), ("validation_per_class", 10), ("teacher_epochs", 30)),
        source=partial(teacher, data_set=HUNDRED),
    )


ON_FEW = ("teacher", "student", "soft_targets", "fitnets", "fsp", "cetl_gfi", NOW.id)
ROWS = by_id(
    *OF_CIFAR10,
    *(_on_few_of_cifar100(row) for row in OF_CIFAR10 if row.id in ON_FEW),
    *(_on_cifar100(row) for row in OF_CIFAR10),
)


class Table4(Photographs):
    """Accuracy beside the paper's, and how far each row gets from student to teacher."""

    def render(self, scale: str) -> str:
        """Write the table in Markdown, from the result files alone."""
        found = self.results(scale)
        lines, means = [], []
        for row in self.rows.values():
            values = accuracies(found.get(row.title, {}))
            means.append(shown_mean(values))
            paper = PAPER.get(row.id.replace("cifar100s", "cifar100"))
            top, low = (PAPER[end.replace("cifar100s", "cifar100")] for end in ends(row))
            between = row.id not in ends(row)
            lines.append(
                [
                    row.title,
                    cell(values, empty=markdown.NOT_RUN),
                    cell(shares(found, row) if between else [], 0),
                    f"{paper:.2f}" if paper else "",
                    f"{100 * (paper - low) / (top - low):.0f}" if paper and between else "",
                ]
            )
        markdown.bold_column(lines, 1, means, [ends(row) for row in self.rows.values()])
        return markdown.table(
            ["", "test accuracy %", "share of the gap closed %", "paper", "its share %"],
            lines,
            measured=[1],
        )


def shares(found: dict[str, dict[int, dict[str, Any]]], row: Row) -> list[float]:
    """Compute by seed how far a row gets from student to teacher in accuracy, in per cent.

    Of seeds in which the teacher is less than two points ahead there is no share.
    """
    titles = [*(ROWS[end].title for end in ends(row)), row.title]
    seeds = set.intersection(*(set(found.get(title, {})) for title in titles))
    gaps = []
    for seed in sorted(seeds):
        top, low, own = (found[title][seed]["figures"]["accuracy"] for title in titles)
        if top - low >= 2:
            gaps.append(100 * (own - low) / (top - low))
    return gaps


TABLE = Table4("table4", ROWS, BUDGETS, source=teacher)
