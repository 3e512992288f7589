"""Table 2, transfer to CIFAR-10-s with S = tf_efficientnet_lite0, and what a user would try.

Every row trains the same CI-CNN on the same images (``benchmarks/data/sets.py``) with the same
views, batches and optimiser, Adam with a cosine to zero. Rows that have a strength get it from
validation images, which are training images that CIFAR-10-s leaves out, with a seed of its own;
then it is the same for all seeds. The last epoch counts.
"""

from __future__ import annotations

from benchmarks import markdown
from benchmarks.methods import cetl, distillation, fine_tuning, plain
from benchmarks.methods.cetl import PENALTIES
from benchmarks.methods.distillation import of_probe
from benchmarks.methods.job import TransferBudget
from benchmarks.methods.sources import efficientnet_lite
from benchmarks.records import accuracies, cell, paired, shown_mean
from benchmarks.tables.photographs import Photographs
from benchmarks.tables.rows import NOW, Row, as_it_comes, by_id

PAPER = {  # Table 2 as printed
    "baseline": 61.29,
    "cetl_f": 62.41,
    "cetl_u": 62.63,
    "cetl_e": 63.97,
    "cetl_fi": 64.19,
    "cetl_gfi": 65.33,
}
BUDGETS = {
    "smoke": TransferBudget(
        per_class=16,
        epochs=1,
        width=0.05,
        warmup_epochs=1,
        image_size=32,
        gfi_samples=16,
        validation_per_class=4,
        test_per_class=4,
    ),
    "cpu": TransferBudget(per_class=200, epochs=20, width=0.25, warmup_epochs=5, gfi_samples=128),
    "full": TransferBudget(per_class=1000, epochs=100, width=1.0, warmup_epochs=30),
}
WEIGHTS = (0.3, 1.0, 3.0)
MORE_WEIGHTS = (*WEIGHTS, 10.0)
MIXED = 4  # images to every labelled one
ROWS = by_id(
    Row("baseline", "baseline", plain.labels_alone),
    Row("longer", "baseline, 3 times the epochs", plain.longer),
    Row("longer_mixed", "baseline, mixed images, 3 times the epochs", plain.longer_on_mixed),
    Row("probe", "linear probe on S", fine_tuning.probe, (1e-4, 1e-3, 1e-2), reads_features=True),
    Row("fine_tuning", "fine-tuning S", fine_tuning.fine_tuned, scales=("smoke", "full")),
    Row("features", "feature distillation", distillation.feature_distillation, (0.1, *WEIGHTS)),
    Row("soft_targets", "soft targets", distillation.soft_targets(of_probe), (*MORE_WEIGHTS, 30.0)),
    Row(
        "features_mixed",
        "feature distillation, mixed images",
        distillation.feature_distillation_on_all,
        MORE_WEIGHTS,
        mixed=MIXED,
    ),
    Row(
        "soft_targets_mixed",
        "soft targets, mixed images",
        distillation.soft_targets_on_all(of_probe),
        MORE_WEIGHTS,
        mixed=MIXED,
    ),
    Row("cetl_f", "CETL f", cetl.penalised("f")),
    Row("cetl_u", "CETL u", cetl.penalised("u")),
    Row("cetl_e", "CETL e", cetl.penalised("e")),
    Row("cetl_joint", "CETL joint", cetl.penalised("joint")),
    Row("cetl_two_step", "CETL two_step", cetl.penalised("two_step")),
    Row("cetl_fi", "CETL fi", cetl.penalised("fi"), PENALTIES, tuned_as="cetl_gfi"),
    Row("cetl_gfi", "CETL gfi", cetl.penalised("gfi"), PENALTIES),
    Row("preset_paper", "CETL gfi, preset paper", cetl.preset("gfi", "paper"), preset="paper"),
    NOW,
    *as_it_comes(("warmup_epochs", "gfi_samples")),
    Row("hints", "CETL gfi, hints", cetl.hints, (0.03, 0.1, 0.3), tuning=True),
    Row(
        "hints_soft",
        "CETL gfi, hints, soft targets",
        cetl.hints_and_soft_targets(of_probe),
        WEIGHTS,
        tuning=True,
    ),
    *(
        Row(
            f"best_mixed_{variant}",
            f"CETL {variant}, preset best, mixed images",
            cetl.best_on_mixed(variant),
            mixed=MIXED,
            preset="best",
        )
        for variant in ("e", "fi", "gfi")
    ),
)


class Table2(Photographs):
    """Accuracy beside the paper's, and what each row gains over T2 on the labels alone."""

    def render(self, scale: str) -> str:
        """Write the table in Markdown, from the result files alone."""
        found = self.results(scale)
        alone = found.get(ROWS["baseline"].title, {})
        lines, means = [], []
        for row in self.rows.values():
            runs = found.get(row.title, {})
            means.append(shown_mean(accuracies(runs)))
            strengths = {run["settings"]["strength"] for run in runs.values()} - {0.0}
            paper, is_baseline = PAPER.get(row.id), row.id == "baseline"
            lines.append(
                [
                    row.title,
                    cell(accuracies(runs), empty=markdown.NOT_RUN),
                    "" if is_baseline else cell(paired(runs, alone), sign=True),
                    ", ".join(f"{s:g}" for s in sorted(strengths)),
                    f"{paper:.2f}" if paper else "",
                    f"{paper - PAPER['baseline']:+.2f}" if paper and not is_baseline else "",
                ]
            )
        markdown.bold_column(lines, 1, means)
        return markdown.table(
            ["", "test accuracy %", "over the baseline, paired", "strength", "paper",
             "over its baseline"], lines, measured=[1],
        )  # fmt: skip


TABLE = Table2("table2", ROWS, BUDGETS, source=efficientnet_lite(0))
