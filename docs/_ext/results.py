"""Figures and tables of the pages, out of the result files: none is typed by hand.

A figure is named by a text whose parts are parted by ``>``:

``tables/table2 > CETL e``
    mean and standard error over seeds of the accuracy of a row
``tables/table2 > CETL e - baseline``
    the difference of two rows, paired by seed; ``table2/baseline`` is a row of another table
``demo/table.md > T2 alone``
    a row of a table in Markdown: its first column of figures, or the one named after a third ``>``;
    ``continual/table.md > permuted-10 > EWC`` looks below the line ``**permuted-10**``
``speed/epoch.json > results > plugins > EWCPlugin > median``
    a value in a document; the last part may be a format such as ``.2f``
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks import records  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def figure(text: str) -> str:
    """Return the figure that a role's text names.

    :raises LookupError: when there is none.
    """
    place, *rest = (part.strip() for part in text.split(">"))
    if not rest:
        raise LookupError(f"{text!r} names no figure in {place}")
    path = RESULTS / place
    if place.endswith(".md"):
        return _in_table(path, rest)
    if place.endswith(".json"):
        return _in_document(path, rest)
    return _over_seeds(path, rest[0], rest[1] if len(rest) > 1 else "accuracy")


def _over_seeds(folder: Path, rows: str, what: str) -> str:
    found = []
    for name in rows.split(" - "):
        other, _, row = name.strip().rpartition("/")
        found.append(_by_seed(folder.parent / other if other else folder, row, what))
    if len(found) == 1:
        values, signed = list(found[0].values()), False
    else:
        first, second = found
        values = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
        signed = True
    if len(values) < 2:
        raise LookupError(f"{rows!r} has {len(values)} seeds in {folder}")
    if what == "seconds":
        return f"{sum(values) / len(values):.0f}"
    return records.cell(values, sign=signed)


def _by_seed(folder: Path, row: str, what: str) -> dict[int, float]:
    """Return a row's figure by seed, from the files of its largest scale."""
    files: list[Path] = []
    for scale in ("full", "cpu"):
        files = sorted((folder / scale).glob(row.replace(" ", "_") + "-seed*.json"))
        if files:
            break
    if not files:
        raise LookupError(f"no run of {row!r} in {folder}")
    found = {}
    for file in files:
        run = json.loads(file.read_text())
        found[run["seed"]] = run["seconds"] if what == "seconds" else run["figures"][what]
    return found


def _in_table(path: Path, rest: list[str]) -> str:
    section, row, column = (None, *rest, None)[-3:] if len(rest) == 1 else _three(path, rest)
    text = path.read_text()
    if section is not None:
        parts = re.split(r"^\*\*(.+)\*\*$", text, flags=re.M)
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        if section not in sections:
            raise LookupError(f"{path.name} has no part {section!r}")
        text = sections[section]
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        header = header or cells
        if cells[0] != row:
            continue
        if column is None:
            return next(c for c in cells[1:] if "±" in c or c.replace(".", "").isdigit())
        if column in header:
            return cells[header.index(column)]
    raise LookupError(f"{path.name} has no row {row!r} with a column {column!r}")


def _three(path: Path, rest: list[str]) -> tuple[str | None, str, str | None]:
    """Return section, row and column: with two parts the first is a section if there is one."""
    if len(rest) == 3:
        return rest[0], rest[1], rest[2]
    first, second = rest
    if f"**{first}**\n" in path.read_text():
        return first, second, _accuracy(path)
    return None, first, second


def _accuracy(path: Path) -> str:
    return "average accuracy %" if path.parent.name == "continual" else "target accuracy %"


def _in_document(path: Path, rest: list[str]) -> str:
    value: Any = json.loads(path.read_text())
    shown = ""
    if re.fullmatch(r"[,.]?\d*[.\dfd,%]*", rest[-1]):
        rest, shown = rest[:-1], rest[-1]
    for part in rest:
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError) as problem:
            raise LookupError(f"{path.name} has no {' > '.join(rest)}") from problem
    return format(value, shown)


def table(name: str) -> str:
    """Return a table or a paragraph of the results in Markdown.

    :raises LookupError: when nothing has that name.
    """
    from benchmarks import blocks, render
    from benchmarks.tables.__main__ import TABLES

    if name in TABLES:
        text = TABLES[name].part(tuning=False).render("cpu")
    elif name == "tried":
        text = render.tried()
    elif name in blocks.BLOCKS:
        text = blocks.BLOCKS[name]()
    else:
        raise LookupError(f"no table is called {name!r}")
    return text.replace("\n%", " %")  # a line that begins with it is a comment in MyST
