"""A self-contained report.html of one demo run."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1c1c; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
td .bar { display: inline-block; height: 0.7rem; background: #0072b2; vertical-align: middle; }
tr.ours td { background: #eef5fa; }
img { max-width: 100%; }
code { background: #f2f2f2; padding: 0 0.2rem; }
"""


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write ``report.html`` beside the pictures, with the pictures inside it.

    :param results: what ``results.json`` holds.
    :param folder: has ``curves.png`` and ``reconstructions.png`` already.
    :return: the report's path.
    """
    data = results["data"]
    small = "<p><b>Quick run</b>: it shows that everything works, not how well.</p>"
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    body = f"""
<h1>CETL on two digit sets</h1>
<p>Source: {escape(data["source"])}, {data["source_train"]:,} training images, all labelled. Target:
{escape(data["target"])}, {data["target_train"]:,} training and {data["target_test"]:,} test images.
Seed {results["seed"]}; {results["seconds"]:.0f} seconds in all.</p>
{small if results["quick"] else ""}
<h2>{data["labels_per_class"]} labels per class in the target, the rest unlabelled</h2>
{_table(results["few_labels"])}
<p>All methods that train on the labels pass over them {data["passes_over_the_labels"]} times.
<i>Source accuracy</i> is that of the same network on source test images: fine-tuning S loses some
of it, while the probe and CETL leave S itself untouched.</p>
<h2>No target label</h2>
{_table(results["unsupervised"])}
<h2>Reconstructions of held-out target images</h2>
<p>T1(S(x)) is decoded from the features of the frozen source network, T1(T2(x)) from the code of
the target network, by the same decoder.</p>
{_picture(folder / "reconstructions.png", "Reconstructions")}
<h2>Losses and penalties of CETL gfi, few labels</h2>
{_picture(folder / "curves.png", "Curves")}
<p>{escape(versions)}</p>
"""
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>CETL on two digit sets</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "<table><tr><th>method</th><th></th><th>target accuracy</th><th>source accuracy</th>"
        "<th>trainable parameters</th><th>seconds</th></tr>"
    ]
    for row in rows:
        width = 0.12 * row["target_accuracy"]
        mark = " class='ours'" if row["method"].startswith("CETL") else ""
        lines.append(
            f"<tr{mark}><td>{escape(row['method'])}</td>"
            f"<td><span class='bar' style='width:{width:.2f}rem'></span></td>"
            f"<td>{row['target_accuracy']:.2f} %</td><td>{row['source_accuracy']:.2f} %</td>"
            f"<td>{row['trainable']:,}</td><td>{row['seconds']:.1f}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def _picture(path: Path, name: str) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"<img alt='{name}' src='data:image/png;base64,{encoded}'>"
