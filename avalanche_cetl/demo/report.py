"""What a run of the demo says: its tables as text, and a report.html that needs nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from avalanche_cetl.demo.methods import ALONE, BEST, COUPLED, SOURCE_FREE, SOURCE_ONLY

Row = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --line: #ddd; --ours: #e3eff8;
        --code: #f2f2f2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --line: #44484d; --ours: #1d3244; --code: #2a2d31; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 1.5rem auto;
       padding: 0 1rem; color: var(--ink); background: var(--paper); }
.wide { overflow-x: auto; scrollbar-width: auto; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1rem; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line);
         font-variant-numeric: tabular-nums; vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper);
                                  white-space: normal; min-width: 6rem; }
tr.ours td { background: var(--ours); }
img { width: 100%; max-width: 38rem; height: auto; background: #fff; }
code { background: var(--code); padding: 0 0.2rem; overflow-wrap: anywhere; }
"""

_BETTER = (
    "Higher is better for both accuracies; fewer trainable parameters and fewer seconds are better."
)


def sentences(results: dict[str, Any]) -> dict[str, str]:
    """Return what each block found, in a sentence, by the block's name."""
    few, none, stream = (results[name] for name in ("few_labels", "no_target_label", "stream"))
    best, free = _target(none, BEST), _target(none, SOURCE_FREE)
    names = {row["method"]: row["averages"][-1] for row in stream}
    ours = names["GFIPlugin()"]
    rival = max(("EWC", "EWC, online"), key=names.__getitem__)
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
            f"After {len(stream[0]['averages'])} experiences, GFIPlugin() has {ours:.1f} % over "
            f"all of them, {_from(ours, names[rival])} {rival}; plain training has "
            f"{names['Naive']:.1f} %."
        ),
    }


def _below_alone(results: dict[str, Any]) -> str:
    """Return a sentence about rows of CETL that are below T2 alone; empty without one."""
    rows = results["few_labels"]
    alone = _target(rows, ALONE)
    below = [
        f"{row['method']} ({_from(row['target_accuracy'], alone)})"
        for row in rows
        if row["method"].startswith("CETL") and row["target_accuracy"] < alone
    ]
    if not below:
        return ""
    return (
        f"Not all of our rows help. Worse than T2 alone: {', '.join(below)}. Rows e, fi and gfi "
        "are the paper's stages, in which a decoder also has to draw each image from what T2 says "
        "of it; CETL as it comes leaves them out."
    )


def _uncertainty(results: dict[str, Any]) -> str:
    """Return what a difference in one run means."""
    count = results["data"]["target_test"]
    share = _target(results["few_labels"], BEST) / 100
    return (
        f"This is one run with one seed. With {count} test images, an accuracy of "
        f"{100 * share:.1f} % has a standard error of "
        f"{100 * math.sqrt(share * (1 - share) / count):.1f} points from the choice of the images "
        "alone: smaller differences between rows may be chance."
    )


def _strengths(results: dict[str, Any]) -> str:
    """Return the strengths of the rivals, and how they were chosen."""
    own, stream = results["settings"], results["settings"]["stream"]
    return (
        f"Strengths: EWC {own['ewc_lambda']:g} and LwF {own['lwf_alpha']:g} in the first table; "
        f"on the stream EWC {stream['ewc']:g}, its online form {stream['ewc_online']:g}, LwF "
        f"{stream['lwf']:g} and GFIPlugin in the diagonal basis {stream['diagonal']:g}; each is "
        "the best of a grid, on validation images of two other seeds. GFIPlugin() has nothing to "
        "choose. EWC is Avalanche's: it has a penalty for each old task, or, online, one for all "
        "of them."
    )


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
<p>Here a small network learns with the help of a larger one.</p>
<ul>
<li><b>S</b>, the source network, is trained on {escape(data["source"])}
({data["source_train"]:,} images). It stays as it is, except where a row says that it tunes S.</li>
<li><b>T2</b>, the target network, has a quarter of the weights of S. It learns
{escape(data["target"])} ({data["target_train"]:,} training images).</li>
<li><b>CETL</b> is a way to train T2: from the labels that there are, and from what S says of the
other images. Afterwards T2 runs alone.</li>
<li><b>Why T2</b>, if S can be tuned and is then better (the last rows of the first table)? Because
T2 is smaller and faster, or because S may not be changed. Where S may be tuned, and may run where
the classifier runs, tune S.</li>
</ul>
<p>All accuracies are of the {data["target_test"]:,} test images of the target and the
{data["source_test"]:,} of the source. Networks that train on digits as they are see the same random
views of them. {_uncertainty(results)}</p>
{small if results["quick"] else ""}
<h2>{data["labels_per_class"]} labels per class</h2>
<p>{escape(told["few_labels"])}</p>
{_picture(folder / "few_labels.png", told["few_labels"])}
<p>Compare the dark bars, ours, with "{ALONE}": the same network without S. The linear probe and the
rows with a star need S where the classifier runs. {escape(_below_alone(results))}</p>
{_table(results["few_labels"])}
<p>The rows that train on the labels pass over them {data["passes_over_the_labels"]} times. With
this many labels CETL chooses the probe's soft targets, on all target images, where the row
"T2, soft targets" reads the labelled images alone. Source accuracy is that of the same network on
the source's test images.</p>
<h2>No target label</h2>
<p>{escape(told["no_target_label"])}</p>
{_picture(folder / "no_target_label.png", told["no_target_label"])}
<p>Compare the dark bars with "{SOURCE_ONLY}", the same network without a target image, and with S,
which is larger.</p>
{_table(results["no_target_label"])}
<h2>A continual stream</h2>
<p>{escape(told["stream"])}</p>
{_picture(folder / "stream.png", told["stream"])}
<p>One network learns one task after the other, and keeps no old image. A line that falls forgets;
the number at its end is the mean accuracy over all tasks. Neither S nor T2 has a part in this.
{escape(_strengths(results))}</p>
{_stream_table(results)}
<h2>What T1 draws</h2>
<p>By the paper's stages CETL trains a decoder T1 (row "{COUPLED}"). From S's features of test
images its error is
{errors["source_error"]:.2f} of the pixels' variance, from T2's code
{errors["target_error"]:.2f} (lower is better).</p>
{_picture(folder / "reconstructions.png", "Test images and their reconstructions by T1")}
<p>First row: test images. Below, what T1 draws from S's features, and from T2's code: where these
look alike, T2 keeps what S knows of the image.</p>
<h2>Losses and penalties over the rounds</h2>
<p>{COUPLED}, {data["labels_per_class"]} labels per class. Losses: lower is better.</p>
{_picture(folder / "curves.png", "Losses and penalties over the rounds")}
<p>Above, each loss should fall. Below, a penalty is high where training pulls at weights that the
stage before needs.</p>
<h2>How this page was made</h2>
<p>{_made(results)}{results["seconds"]:.0f} seconds. {escape(versions)}.</p>
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


def _made(results: dict[str, Any]) -> str:
    """Return command and date, where the results have them."""
    command, date = results.get("command"), results.get("date")
    shown = f"<code>{escape(command)}</code>, " if command else f"Seed {results['seed']}, "
    return shown + (f"{escape(date)}, " if date else "")


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
