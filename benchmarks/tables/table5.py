"""Table 5, domain adaptation of digits without target labels.

Every method has the same network (CI-CNN), the same images, augmentation, optimiser (Adam, its
rate falling to zero by a cosine), batch and number of passes over the data; see
``benchmarks/data/digits.py``. Pairs with SVHN and STL-10 are of scale ``full``. S is a wider
CI-CNN, trained on the source images alone. The last epoch counts.

Each method has one strength. It is chosen once per direction, with a seed of its own, from a grid,
by information maximisation on the target's *training* images, which reads no label; then it is the
same for all seeds. A method without a strength has nothing to choose. What else CETL has with a
decoder was settled by that score too, and on another pair, ``digits-mini`` (MNIST to optdigits).
CETL as it comes was chosen on the suite's development tasks, of which MNIST to USPS and MNIST to
optdigits are two, by the accuracy on validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import markdown
from benchmarks.data.digits import COLOUR, COUNTS, DIRECTIONS, OTHERS, SMALL
from benchmarks.methods import adda, association, cetl, plain, skada, weighted_mmd
from benchmarks.methods.job import AdaptationBudget, Method
from benchmarks.records import accuracies, cell, paired, shown_mean
from benchmarks.tables.adaptation import Adaptation
from benchmarks.tables.rows import NOW, Row, as_it_comes, by_id

PAPER = {  # Table 5 as printed: MN-US, US-MN, SV-MN, MN-SV, ST-CI, CI-ST; None: no figure
    "source_only": (85.55, 65.77, 62.33, 25.95, 54.17, 63.61),
    "sa": (85.89, 51.54, 63.17, 28.52, 54.04, 62.88),
    "dann": (91.11, 74.01, 73.91, 35.67, 56.91, 66.12),
    "drcn": (91.80, 88.67, 81.97, 40.05, 58.86, 66.37),
    "adda": (89.40, 90.10, 76.00, None, None, None),
    "wda": (72.30, 65.50, 67.30, 23.5, None, None),
    "cetl_gfi": (92.96, 90.89, 83.33, 45.27, 60.11, 66.39),
}
PAIRS = {
    "smoke": DIRECTIONS,
    "cpu": (*DIRECTIONS, SMALL, COLOUR),
    "full": (*DIRECTIONS, SMALL, COLOUR, *OTHERS),
}
BUDGETS = {
    "smoke": AdaptationBudget(
        counts={"MN": 200, "US": 180},
        epochs=1,
        width=0.05,
        source_width=0.05,
        source_epochs=1,
        warmup_epochs=1,
        batch=64,
        test_images=200,
    ),
    "cpu": AdaptationBudget(counts=COUNTS, epochs=20),
    "full": AdaptationBudget(
        counts=None,
        epochs=50,
        width=1.0,
        source_width=1.0,
        source_epochs=30,
        warmup_epochs=30,
        batch=128,
    ),
}
#: Values of the budget that methods do not read: without S, besides it without T1, and with the
#: preset's own.
NO_SOURCE = ("source_width", "source_epochs")
NO_DECODER = (*NO_SOURCE, "warmup_epochs", "gfi_samples", "input_noise", "dwa_lambda")
OF_THE_PRESET = ("warmup_epochs", "input_noise", "dwa_lambda")


def _rival(id: str, title: str, method: Method, *strengths: float) -> Row:
    return Row(id, title, method, strengths or (0.0,), unread=NO_DECODER)


FACTORS, HINTS, VIEWS = (0.03, 0.1, 0.3, 1.0), (0.3, 1.0, 3.0), (3.0, 10.0, 30.0)
VARIANTS = ("e", "fi", "gfi")
AS_IT_COMES = (*OF_THE_PRESET, "gfi_samples")
#: The row whose lead over every other is shown.
BEST = "now"
ROWS = by_id(
    _rival("source_only", "source only", plain.labels_alone),
    _rival("sa", "SA", skada.subspace_alignment),
    _rival("dann", "DANN", skada.deep("DANN"), 0.03, 0.1, 0.3, 1.0),
    _rival("dan", "DAN", skada.deep("DAN"), 0.03, 0.1, 1.0, 10.0),
    _rival(
        "deep_coral", "DeepCORAL", skada.deep("DeepCoral"), 0.001, 0.003, 0.01, 0.03, 0.1, 1.0, 10.0
    ),
    _rival("cdan", "CDAN", skada.deep("CDAN"), 0.01, 0.03, 0.1, 0.3, 1.0),
    _rival("mcc", "MCC", skada.deep("MCC"), 0.1, 0.3, 1.0),
    _rival("adda", "ADDA", adda.train, 0.03, 0.1, 0.3, 1.0),
    _rival("wda", "WDA", weighted_mmd.train, 0.03, 0.1, 1.0, 10.0),
    _rival("association", "Association", association.train, 0.1, 0.3, 1.0, 3.0),
    Row(
        "drcn",
        "DRCN",
        cetl.adapted("e", with_source=False),
        (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        unread=NO_SOURCE,
    ),
    *(Row(f"cetl_{v}", f"CETL {v}", cetl.adapted(v), FACTORS, tuned_as="cetl_e") for v in VARIANTS),
    replace(NOW, unread=AS_IT_COMES),
    replace(
        NOW,
        id="now_source_free",
        title="CETL as it comes, no source images",
        method=cetl.now_source_free,
        unread=AS_IT_COMES,
    ),
    *as_it_comes(AS_IT_COMES),
    Row(
        "source_itself",
        "S itself",
        plain.the_source,
        unread=("epochs", "width", *AS_IT_COMES),
    ),
    Row(
        "source_free",
        "CETL, preset best, no source images",
        cetl.source_free,
        unread=AS_IT_COMES,
        preset="best",
        as_it_comes=True,
    ),
    *(
        Row(
            f"hints_{v}",
            f"CETL {v}, hints",
            cetl.adapted(v, cetl.decoder_hints),
            HINTS,
            tuned_as="hints_gfi",
            tuning=True,
        )
        for v in VARIANTS
    ),
    Row(
        "views_gfi",
        "CETL gfi, hints and views",
        cetl.adapted("gfi", cetl.hints_and_views),
        VIEWS,
        tuning=True,
    ),
    *(
        Row(
            f"late_views_{v}",
            f"CETL {v}, hints and late views",
            cetl.adapted(v, cetl.hints_and_late_views),
            VIEWS,
            tuned_as="late_views_gfi",
            tuning=True,
        )
        for v in VARIANTS
    ),
    *(
        Row(
            f"preset_best_{v}",
            f"CETL {v}, preset best",
            cetl.preset(v, "best"),
            unread=OF_THE_PRESET,
            preset="best",
        )
        for v in VARIANTS
    ),
)


class Table5(Adaptation):
    """Accuracy on every pair beside the paper's, and the lead of the preset as it comes."""

    def render(self, scale: str) -> str:
        """Write the table in Markdown, from the result files alone."""
        if any(row.id in PAPER for row in self.rows.values()):
            return f"{self._digits(scale)}\n\n{self._others(scale)}"
        return self._digits(scale)

    def _digits(self, scale: str) -> str:
        directions = (*DIRECTIONS, SMALL, COLOUR)
        found = self.results(scale)
        own = self._columns(found, directions)
        lines = []
        for number, row in enumerate(self.rows.values()):
            leads = []
            for direction in DIRECTIONS:
                best, one = (found.get(self.title(r, direction), {}) for r in (ROWS[BEST], row))
                leads.append(cell(paired(best, one) if row.id != BEST else [], sign=True))
            paper = [f"{value:.2f}" for value in PAPER.get(row.id, ())[:2]] or ["", ""]
            *pairs, small, colour = (own[direction][number] for direction in directions)
            lines.append([row.title, *pairs, *paper, *leads, small, colour])
        header = ["target accuracy %", *DIRECTIONS, *(f"paper, {d}" for d in DIRECTIONS)]
        header += [f"{ROWS[BEST].title} over it, paired, MN-US", "US-MN", SMALL, COLOUR]
        return markdown.table(header, lines, measured=[1, 2, -2, -1])

    def _others(self, scale: str) -> str:
        own = self._columns(self.results(scale), OTHERS)
        lines = []
        for number, row in enumerate(self.rows.values()):
            cells = []
            for direction, paper in zip(OTHERS, PAPER.get(row.id, (None,) * 6)[2:], strict=True):
                printed = f" ({paper:.2f})" if paper is not None else ""
                cells.append(own[direction][number] + printed)
            lines.append([row.title, *cells])
        return markdown.table(["target accuracy %, paper's in brackets", *OTHERS], lines)

    def _columns(
        self, found: dict[str, dict[int, dict[str, Any]]], directions: Sequence[str]
    ) -> dict[str, list[str]]:
        """Write by direction the accuracies of all rows, the best of them in bold."""
        columns = {}
        for direction in directions:
            titles = [self.title(row, direction) for row in self.rows.values()]
            values = [accuracies(found.get(title, {})) for title in titles]
            columns[direction] = markdown.bold_best(
                [cell(one, empty=markdown.NOT_RUN) for one in values],
                [shown_mean(one) for one in values],
            )
        return columns


TABLE = Table5("table5", ROWS, BUDGETS, columns=PAIRS)
