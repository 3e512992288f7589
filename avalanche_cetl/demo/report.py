"""What a run of the demo says: its tables as text, and a report.html that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from avalanche_cetl.demo.methods import ALONE, BEST, COUPLED, SOURCE_FREE, SOURCE_ONLY

Row = dict[str, Any]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 1.5rem auto;
       padding: 0 1rem; color: #1c1c1c; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1rem; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
tr.ours td { background: #eef5fa; }
img { width: 100%; max-width: 46rem; min-width: 34rem; height: auto; }
code { background: #f2f2f2; padding: 0 0.2rem; }
"""

_BETTER = (
    "Higher is better for both accuracies; fewer trainable parameters and fewer seconds are better."
)


def sentences(results: dict[str, Any]) -> dict[str, str]:
    """Return what each block found, in a sentence, by the block's name."""
    few, none, stream = (results[name] for name in ("few_labels", "no_target_label", "stream"))
    best, free = _target(none, BEST), _target(none, SOURCE_FREE)
    names = {row["method"]: row["averages"][-1] for row in stream}
    kronecker, ewc = names["GFIPlugin, Kronecker"], names["EWC"]
    return {
        "few_labels": (
            f"With {results['data']['labels_per_class']} labels per class, T2 trained by "
            f"CETL is right on {_target(few, BEST):.1f} % of the test images, "
            f"{_from(_target(few, BEST), _target(few, ALONE))} the same network alone."
        ),
        "no_target_label": (
            f"Without any target label, CETL reaches {best:.1f} %, "
            f"{_from(best, _target(none, SOURCE_ONLY))} the same network trained on the source "
            f"alone; from S and unlabelled images, without a source image, it is {free:.1f} %."
        ),
        "stream": (
            f"After {len(stream[0]['averages'])} experiences, GFIPlugin in the Kronecker basis has "
            f"{kronecker:.1f} % over all of them, {_from(kronecker, ewc)} EWC; plain training has "
            f"{names['Naive']:.1f} %."
        ),
    }


def _from(value: float, other: float) -> str:
    where = "above" if value >= other else "below"
    return f"{abs(value - other):.1f} points {where}"


def _target(rows: Sequence[Row], method: str) -> float:
    return float(next(row["target_accuracy"] for row in rows if row["method"] == method))


# ------------------------------------------------------------------ text


def table_lines(results: dict[str, Any]) -> list[str]:
    """Return the three tables as lines of text."""
    told, data = sentences(results), results["data"]
    few = f"{data['labels_per_class']} labels per class, {data['target_train']} target images"
    lines = []
    for title, block in ((few, "few_labels"), ("no target label", "no_target_label")):
        head = f"{'':36}{'target acc.':>12}{'source acc.':>12}{'trainable':>12}{'seconds':>9}"
        lines += ["", f"{title} (accuracies: higher is better)", head]
        for row in results[block]:
            lines.append(
                f"{row['method']:36}{row['target_accuracy']:11.2f}%{row['source_accuracy']:11.2f}%"
                f"{row['trainable']:12,}{row['seconds']:9.1f}  {row['note']}".rstrip()
            )
        lines.append(told[block])
    lines += ["", f"{_stream_title(results)} (accuracies: higher is better)"]
    lines.append(f"{'':36}{'over all':>12}{'on the first':>14}{'seconds':>9}")
    for row in results["stream"]:
        lines.append(
            f"{row['method']:36}{row['averages'][-1]:11.2f}%{row['first'][-1]:13.2f}%"
            f"{row['seconds']:9.1f}"
        )
    return [*lines, told["stream"]]


def _stream_title(results: dict[str, Any]) -> str:
    count = len(results["stream"][0]["averages"])
    return f"a stream of {count} experiences, the source's images with permuted pixels"


# ------------------------------------------------------------------ page


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write ``report.html`` beside the pictures, with the pictures inside it.

    :param results: what ``results.json`` holds.
    :param folder: has the pictures already.
    :return: the report's path.
    """
    data, told = results["data"], sentences(results)
    small = "<p><b>Quick run</b>: it shows that everything works, not how well.</p>"
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    errors = next(row for row in results["few_labels"] if row["method"] == COUPLED)
    body = f"""
<h1>CETL on two digit sets</h1>
<p>S is a network trained on {escape(data["source"])} ({data["source_train"]:,} images), and stays
as it is, except where a row says that it tunes S. T2 is a quarter of its size, and learns
{escape(data["target"])} ({data["target_train"]:,} training images). All accuracies are of the
{data["target_test"]:,} test images of the target and the {data["source_test"]:,} of the source.
Networks that train on digits as they are see the same random views of them. Seed {results["seed"]};
{results["seconds"]:.0f} seconds in all.</p>
{small if results["quick"] else ""}
<h2>{data["labels_per_class"]} labels per class</h2>
<p>{escape(told["few_labels"])}</p>
{_picture(folder / "few_labels.png", told["few_labels"])}
{_table(results["few_labels"])}
<p>The rows that train on the labels pass over them {data["passes_over_the_labels"]} times. With
this many labels CETL chooses the probe's soft targets, on all target images, where the row
"T2, soft targets" reads the labelled images alone. Source accuracy is that of the same network on
the source's test images.</p>
<h2>No target label</h2>
<p>{escape(told["no_target_label"])}</p>
{_picture(folder / "no_target_label.png", told["no_target_label"])}
{_table(results["no_target_label"])}
<h2>A continual stream</h2>
<p>{escape(told["stream"])}</p>
{_picture(folder / "stream.png", told["stream"])}
{_stream_table(results)}
<h2>What T1 draws</h2>
<p>By the paper's stages CETL trains a decoder T1 (row "{COUPLED}"). From S's features of test
images its error is
{errors["source_error"]:.2f} of the pixels' variance, from T2's code
{errors["target_error"]:.2f} (lower is better).</p>
{_picture(folder / "reconstructions.png", "Test images and their reconstructions by T1")}
<h2>Losses and penalties over the rounds</h2>
<p>{COUPLED}, {data["labels_per_class"]} labels per class. Losses: lower is better.</p>
{_picture(folder / "curves.png", "Losses and penalties over the rounds")}
<p>{escape(versions)}</p>
"""
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>CETL on two digit sets</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _table(rows: Sequence[Row]) -> str:
    heads = ("target accuracy", "source accuracy", "trainable parameters", "seconds")
    best = [max(row[f"{of}_accuracy"] for row in rows) for of in ("target", "source")]

    def cells() -> Iterator[list[str]]:
        for row in rows:
            accuracies = [row["target_accuracy"], row["source_accuracy"]]
            marked = [_percent(value, top) for value, top in zip(accuracies, best, strict=True)]
            name = escape(row["method"])
            if row["note"]:
                name += f"<br><small>{escape(row['note'])}</small>"
            yield [name, *marked, f"{row['trainable']:,}", f"{row['seconds']:.1f}"]

    ours = [row["method"].startswith("CETL") for row in rows]
    return _page_table(_BETTER, ("method", *heads), cells(), ours)


def _stream_table(results: dict[str, Any]) -> str:
    rows = results["stream"]
    better = "Higher is better for both accuracies; fewer seconds are better."
    last = [[row[key][-1] for key in ("averages", "first")] for row in rows]
    best = [max(column) for column in zip(*last, strict=True)]
    cells = (
        [
            escape(row["method"]),
            *(_percent(value, top) for value, top in zip(values, best, strict=True)),
            f"{row['seconds']:.1f}",
        ]
        for row, values in zip(rows, last, strict=True)
    )
    heads = ("method", "accuracy over all experiences", "on the first of them", "seconds")
    text = f"{_stream_title(results).capitalize()}. {better}"
    return _page_table(text, heads, cells, [row["method"].startswith("GFI") for row in rows])


def _percent(value: float, best: float) -> str:
    shown = f"{value:.2f} %"
    return f"<b>{shown}</b>" if value == best else shown


def _page_table(
    caption: str, heads: Sequence[str], rows: Iterator[list[str]], ours: Sequence[bool]
) -> str:
    lines = [f"<p>{escape(caption)} The best are bold.</p>", "<div class='wide'><table>"]
    lines.append("<tr>" + "".join(f"<th scope='col'>{head}</th>" for head in heads) + "</tr>")
    for row, own in zip(rows, ours, strict=True):
        mark = " class='ours'" if own else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table></div>"])


def _picture(path: Path, alternative: str) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(alternative)}" src="data:image/png;base64,{encoded}">'
    return f"<div class='wide'>{image}</div>"
