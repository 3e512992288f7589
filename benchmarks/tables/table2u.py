"""Table 2 again, with unlabelled target images beside the labelled ones.

The paper has no such table. Network, labelled images, validation and test are Table 2's; every
method here may read the unlabelled images as well, and S's features of them. A round of CETL has
two passes over the labelled images, so that all rounds have as many as Table 2's baseline.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from benchmarks import markdown
from benchmarks.methods import cetl, distillation
from benchmarks.methods.cetl import PENALTIES
from benchmarks.methods.distillation import of_probe
from benchmarks.methods.job import TransferBudget
from benchmarks.records import accuracies, cell, paired, shown_mean
from benchmarks.tables import table2
from benchmarks.tables.photographs import Photographs
from benchmarks.tables.rows import NOW, Row, as_it_comes, by_id
from benchmarks.tables.table2 import MORE_WEIGHTS


@dataclass(frozen=True, kw_only=True)
class WithUnlabelled(TransferBudget):
    """The budget of Table 2, with half the rounds, and more images.

    :ivar unlabelled_per_class: drawn by class, from training images that neither the labelled nor
        the validation images have; their labels are not kept.
    """

    unlabelled_per_class: int

    def unlabelled(self) -> int:
        """Return the number of unlabelled images of a class."""
        return self.unlabelled_per_class


def _budget(scale: str, epochs: int, warmup_epochs: int, count: int) -> WithUnlabelled:
    own = asdict(table2.BUDGETS[scale]) | {"epochs": epochs, "warmup_epochs": warmup_epochs}
    return WithUnlabelled(**own, unlabelled_per_class=count)


BUDGETS = {
    "smoke": _budget("smoke", 1, 1, 8),
    "cpu": _budget("cpu", 10, 2, 400),
    "full": _budget("full", 50, 10, 3000),
}
ROWS = by_id(
    Row(
        "features",
        "feature distillation",
        distillation.feature_distillation_on_all,
        (*MORE_WEIGHTS, 30.0),
    ),
    Row("soft_targets", "soft targets", distillation.soft_targets_on_all(of_probe), MORE_WEIGHTS),
    NOW,
    *as_it_comes(("warmup_epochs", "gfi_samples")),
    Row("hints", "CETL gfi, hints", cetl.hints_on_unlabelled("gfi"), PENALTIES[1:2], tuning=True),
    *(
        Row(
            f"hints_soft_{variant}",
            f"CETL {variant}, hints, soft targets",
            cetl.hints_on_unlabelled(variant, of_probe),
            (1.0, 3.0, 10.0),
            tuned_as="hints_soft_gfi",
        )
        for variant in ("e", "fi", "gfi")
    ),
)


class Table2U(Photographs):
    """Accuracy, and what each row gains over Table 2's baseline and over soft targets."""

    def render(self, scale: str) -> str:
        """Write the table in Markdown, from the result files alone."""
        found = self.results(scale)
        alone = table2.TABLE.results(scale).get(table2.ROWS["baseline"].title, {})
        soft = found.get(ROWS["soft_targets"].title, {})
        lines, means = [], []
        for row in self.rows.values():
            runs = found.get(row.title, {})
            means.append(shown_mean(accuracies(runs)))
            strengths = {run["settings"]["strength"] for run in runs.values()} - {0.0}
            over_soft = paired(runs, soft) if row.id != "soft_targets" else []
            lines.append(
                [
                    row.title,
                    cell(accuracies(runs), empty=markdown.NOT_RUN),
                    cell(paired(runs, alone), sign=True),
                    cell(over_soft, sign=True),
                    ", ".join(f"{strength:g}" for strength in sorted(strengths)),
                ]
            )
        markdown.bold_column(lines, 1, means)
        return markdown.table(
            ["", "test accuracy %", "over Table 2's baseline, paired", "over soft targets",
             "strength"], lines, measured=[1],
        )  # fmt: skip


TABLE = Table2U("table2u", ROWS, BUDGETS, source=table2.TABLE.source)
