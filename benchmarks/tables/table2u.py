"""Table 2 again, with unlabelled target images beside the labelled ones.

The paper has no such table. Network, labelled images, validation and test are Table 2's; every
method here may read the unlabelled images as well, and S's features of them. A round of CETL has
two passes over the labelled images, so that all rounds have as many as Table 2's baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from torch import nn

from avalanche_cetl import DecoderHints
from avalanche_cetl.encoders import Encoder
from benchmarks.records import accuracies, cell, paired, results
from benchmarks.tables import board, table2
from benchmarks.tables.board import Row
from benchmarks.tables.table2 import SOFT, WEIGHTS, softened
from benchmarks.tables.transfer import Budget, Job, coupled
from benchmarks.where import Where

TABLE = "table2u"


@dataclass(frozen=True)
class WithUnlabelled(Budget):
    """The budget of Table 2, with half the rounds, and more images.

    :ivar unlabelled_per_class: drawn by class, from training images that neither the labelled nor
        the validation images have; their labels are not kept.
    """

    unlabelled_per_class: int = 0

    def unlabelled(self) -> int:
        """Give the number of unlabelled images of a class."""
        return self.unlabelled_per_class


def _budget(scale: str, epochs: int, warmup_epochs: int, count: int) -> WithUnlabelled:
    own = asdict(table2.BUDGETS[scale]) | {"epochs": epochs, "warmup_epochs": warmup_epochs}
    return WithUnlabelled(**own, unlabelled_per_class=count)


BUDGETS = {
    "smoke": _budget("smoke", 1, 1, 8),
    "cpu": _budget("cpu", 10, 2, 400),
    "full": _budget("full", 50, 10, 3000),
}


def cetl(variant: str, soft: bool = True) -> Callable[[Job, float], nn.Module]:
    """CETL with a fixed goal and T1's hidden layers, in stage 2 on all images.

    :param soft: and with soft targets there; the strength is theirs, else DWA's lambda.
    """

    def train(job: Job, strength: float) -> nn.Module:
        plugins = [DecoderHints(1.0), *([softened(job, strength, "target")] if soft else [])]
        return coupled(
            job,
            plugins=plugins,
            variant=variant,
            dwa_lambda=table2.PENALTIES[1] if soft else strength,
            fixed_goal=True,
            stage_epochs=(1, 1, 2),
        )

    return train


BEST = "CETL gfi, hints, soft targets"
ROWS = {
    "feature distillation": Row(table2.feature_distillation_on_all, WEIGHTS),
    "soft targets": Row(table2.soft_targets_on_all, SOFT),
    "CETL gfi, hints": Row(cetl("gfi", soft=False), table2.PENALTIES[1:2]),
    "CETL e, hints, soft targets": Row(cetl("e"), SOFT, tuned_as=BEST),
    "CETL fi, hints, soft targets": Row(cetl("fi"), SOFT, tuned_as=BEST),
    BEST: Row(cetl("gfi"), SOFT),
}


def source_of(row: str, budget: Budget, root: str, where: Where) -> Encoder:
    """S, as in Table 2."""
    return table2.source_of(row, budget, root, where)


run = partial(board.run, TABLE)


def render(scale: str) -> str:
    """Give the table in Markdown, from the result files alone."""
    found = results(TABLE, scale)
    others = [results("table2", scale).get("baseline", {}), found.get("soft targets", {})]
    lines = [
        "| | test accuracy % | over Table 2's baseline, paired | over soft targets | strength |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        runs = found.get(row, {})
        values = accuracies(runs)
        gains = [paired(runs, other) if row != "soft targets" or i == 0 else []
                 for i, other in enumerate(others)]  # fmt: skip
        cells = [
            row,
            cell(values, 2, empty="not run"),
            *(cell(gain, 2, sign=True) for gain in gains),
            ", ".join(sorted({f"{run['settings']['strength']:g}" for run in runs.values()})),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
