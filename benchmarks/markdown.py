"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: What stands in place of a figure that was not measured.
NOT_RUN = "not run"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], measured: Sequence[int] = ()
) -> str:
    """Write a table: a header, and a line for each row.

    :param measured: columns of figures. Rows that were not run in any of them are named below the
        table, with what else they hold.
    """
    empty = [row for row in rows if measured and {row[i] for i in measured} <= {NOT_RUN, ""}]
    if empty and len(empty) < len(rows):
        named = "; ".join(_named(header, row) for row in empty)
        return f"{table(header, [row for row in rows if row not in empty])}\n\nNot run: {named}."
    lines = [_line(header).replace("|  |", "| |"), _line(["---"] * len(header)), *map(_line, rows)]
    return "\n".join(lines)


def _named(header: Sequence[str], row: Sequence[str]) -> str:
    """Return the name of a row that was not run, with its other cells by their columns."""
    others = [
        f"{head} {cell}"
        for head, cell in zip(header[1:], row[1:], strict=True)
        if cell not in (NOT_RUN, "")
    ]
    return f"{row[0]} ({', '.join(others)})" if others else row[0]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def bold_best(
    cells: Sequence[str], values: Sequence[float | None], groups: Sequence[Any] | None = None
) -> list[str]:
    """Put the best cell in bold, whoever it belongs to; all of them where several are best.

    A cell that has nothing to be compared with stays as it is.

    :param cells: a row or a column of a table.
    :param values: what the cells show, more is better; None: no figure.
    :param groups: of which each has a best cell; by default all cells are one.
    """
    shown: dict[Any, list[float]] = {}
    groups = [None] * len(cells) if groups is None else groups
    for group, value in zip(groups, values, strict=True):
        if value is not None:
            shown.setdefault(group, []).append(value)
    return [
        f"**{cell}**"
        if value is not None and len(shown[group]) > 1 and value == max(shown[group])
        else cell
        for cell, value, group in zip(cells, values, groups, strict=True)
    ]


def bold_column(
    rows: Sequence[list[str]],
    column: int,
    values: Sequence[float | None],
    groups: Sequence[Any] | None = None,
) -> None:
    """Put the best cell of a column in bold, as :func:`bold_best` does, in the rows themselves."""
    best = bold_best([row[column] for row in rows], values, groups)
    for row, cell in zip(rows, best, strict=True):
        row[column] = cell
