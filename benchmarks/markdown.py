"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table: a header, and a line for each row."""
    lines = [_line(header).replace("|  |", "| |"), _line(["---"] * len(header)), *map(_line, rows)]
    return "\n".join(lines)


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
