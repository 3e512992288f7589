"""The rows of a table: a method each, by an id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.methods import cetl
from benchmarks.methods.job import Method
from benchmarks.methods.sources import Source

SCALES = ("smoke", "cpu", "full")


@dataclass(frozen=True)
class Row:
    """A row of a table: a method, and what it may choose from.

    :ivar id: its name in code and on the command line, a word.
    :ivar title: as the table and the result files call it.
    :ivar method: takes a job, returns the trained network.
    :ivar strengths: values of the job's strength to choose from; a single one is not chosen, and a
        row that has none has no strength in its settings.
    :ivar tuned_as: id of the row whose strength it takes; None: it chooses.
    :ivar scales: where it is run.
    :ivar data: the data set, where rows bring their own.
    :ivar changes: values of the budget that differ from the table's, by name.
    :ivar unread: values of the budget that its result does not depend on.
    :ivar preset: of the strategy.
    :ivar variant: with which it is described; None: its own.
    :ivar as_it_comes: whether it has no variant but the preset's, or (None) that of version 0.2's
        defaults.
    :ivar reads_features: whether the network reads S's features in place of images.
    :ivar mixed: unlabelled mixed images that it reads for every training image; its rounds have
        two passes over the labels, and are half as many.
    :ivar source: makes S; None: the table's.
    :ivar tuning: whether it only served to choose settings; ``benchmarks/TRIED.md`` shows it.
    """

    id: str
    title: str
    method: Method
    strengths: tuple[float, ...] = (0.0,)
    tuned_as: str | None = None
    scales: tuple[str, ...] = SCALES
    data: str = "CIFAR-10"
    changes: tuple[tuple[str, Any], ...] = ()
    unread: tuple[str, ...] = ()
    preset: str | None = None
    variant: str | None = "gfi"
    as_it_comes: bool = False
    reads_features: bool = False
    mixed: int = 0
    source: Source | None = None
    tuning: bool = False


#: CETL as it comes today, on labelled images alone.
NOW = Row(
    "now", "CETL as it comes", cetl.now, preset="best", variant=None,
    unread=("warmup_epochs", "gfi_samples"),
)  # fmt: skip


def as_it_comes(unread: tuple[str, ...]) -> tuple[Row, Row]:
    """Return the rows of CETL of version 0.2, as it came and with ``preset="best"``.

    :param unread: values of the budget that neither reads.
    """
    defaults = Row(
        "defaults", "CETL, defaults", cetl.as_it_comes(None), unread=unread, as_it_comes=True
    )
    best = Row(
        "best", "CETL, preset best", cetl.as_it_comes("best"), unread=unread, preset="best",
        as_it_comes=True,
    )  # fmt: skip
    return defaults, best


def by_id(*rows: Row) -> dict[str, Row]:
    """Return rows by their ids, in their order.

    :raises ValueError: when two have the same id or title: their results would be mixed up.
    """
    found = {row.id: row for row in rows}
    if len(found) < len(rows) or len({row.title for row in rows}) < len(rows):
        raise ValueError(f"two rows have the same id or title: {[(r.id, r.title) for r in rows]}.")
    return found
