"""Pictures of the demo: a bar for each method, a line for each plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avalanche_cetl.common.pictures import LINE_STYLES, OTHERS, OURS, picture


def draw_bars(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the target accuracy of every method; CETL's bars are dark, and hatched.

    :param rows: of a table, as ``results.json`` holds them.
    :param path: where the picture goes.
    """
    figure, axis = picture(size=(5.2, 0.34 * len(rows) + 1.1))
    values = [row["target_accuracy"] for row in rows]
    ours = [row["method"].startswith("CETL") for row in rows]
    bars = axis.barh(
        range(len(rows)), values, color=[OURS if own else OTHERS for own in ours], edgecolor="w"
    )
    for bar, own, value in zip(bars, ours, values, strict=True):
        bar.set_hatch("//" if own else "")
        axis.text(value + 0.3, bar.get_y() + bar.get_height() / 2, f"{value:.1f}", va="center")
    names = [row["method"] + (" *" if row["note"].startswith("tunes S") else "") for row in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    low = max(0.0, min(values) - 8)
    axis.set_xlim(low, 103)
    start = "" if low == 0 else f"\n(the axis begins at {low:.0f})"
    starred = "\n* tunes S" if any(name.endswith("*") for name in names) else ""
    axis.set_xlabel(
        f"target test accuracy %, higher is better{start}{starred}",
    )
    figure.savefig(path)


def draw_stream(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the mean accuracy over all experiences so far, after each, with names at the lines' end.

    :param rows: of the continual block, as ``results.json`` holds them.
    :param path: where the picture goes.
    """
    figure, axis = picture(size=(5.6, 3.8))
    count = len(rows[0]["averages"])
    # The last row is the one to look at; it has the first style.
    styles = [style._asdict() for style in reversed(LINE_STYLES[: len(rows)])]
    for row, style in zip(rows, styles, strict=True):
        axis.plot(range(1, count + 1), row["averages"], **style)
    lowest = min(min(row["averages"]) for row in rows)
    highest = max(max(row["averages"]) for row in rows)
    gap = 0.055 * max(highest - lowest, 1.0)
    place = float("inf")
    for row, style in sorted(
        zip(rows, styles, strict=True), key=lambda pair: -pair[0]["averages"][-1]
    ):
        end = row["averages"][-1]
        place = min(end, place - gap)
        axis.plot([count + 0.7], [place], **style)
        axis.text(count + 1.1, place, f"{row['method']}  {end:.1f}", va="center")
    axis.set_xlim(0.8, count + max(2.0, 0.95 * count))
    axis.set_xticks(range(1, count + 1))
    axis.spines["bottom"].set_bounds(0.8, count + 0.2)
    axis.set_xlabel("experiences so far")
    axis.set_ylabel("mean test accuracy over them %,\nhigher is better")
    figure.savefig(path)
