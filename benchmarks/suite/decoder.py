"""When does the decoder help? ``python -m benchmarks.suite.decoder --data-root DIR``.

On the tasks of ``benchmarks.suite.teachers``: T2 alone, ``CETLStrategy`` as it comes (no decoder),
and the coupled network, ``variant="gfi"``, as it comes and with the soft targets of the default.
Development tasks are measured on their validation images, tasks kept back on their test images.

Beside the accuracies stands what can be known without a test label, and may tell when the decoder
is worth its time:

- ``probe``: how often a linear probe on S's features is right on labelled images held out from it.
- ``pixels``: the same of a probe on the images' pixels, at most 16 x 16.
- ``colour``: the same of a probe on the means and deviations of the channels.
- ``drawn``: how much of the variance of the images T1 can draw of S's code at the end, 1 - mean
  squared error / variance, over the target images.
- ``agreed``: how often a probe on S's features of T1(S(x)), where S can run, or on its pixels says
  what the probe on S's features of x does.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl import CoupledModel, PrecomputedEncoder, linear_probe
from benchmarks import markdown
from benchmarks.methods.plain import accuracy
from benchmarks.records import cell
from benchmarks.suite.rows import coupled
from benchmarks.suite.runs import FOLDER, PACKAGES, Runs
from benchmarks.suite.tasks import BATCH, LEARNING_RATE, WIDTH, Data, Task
from benchmarks.suite.teachers import TASKS, Teacher, run_missing

ALONE, DEFAULT = "T2 alone", "CETLStrategy(...)"
COUPLED, COUPLED_3 = 'variant="gfi"', 'variant="gfi", soft targets of weight 3'
ROWS = (ALONE, DEFAULT, COUPLED, COUPLED_3)
KNOWN = ("probe", "pixels", "colour", "drawn", "agreed")


def features_of(data: Data) -> Tensor:
    """Return S's features of the target images."""
    if isinstance(data.source, PrecomputedEncoder):
        return data.source.streams["train"][0]
    with torch.no_grad():
        return torch.cat([data.source(part) for part in data.train[0].split(256)])


def held_out(features: Tensor, labels: Tensor) -> float:
    """Return how often a probe is right on labelled rows held out from it, in percent."""
    known = labels >= 0
    found = linear_probe(features[known], labels[known]).held_out
    return round(100 * found.accuracy, 1) if found else float("nan")


def _pixels(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, min(16, images.shape[-1])).flatten(1)


def indicators(data: Data) -> dict[str, float]:
    """Return what is known before training."""
    x, y = data.train
    colour = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
    inputs = {"probe": features_of(data), "pixels": _pixels(x), "colour": colour}
    return {name: held_out(one, y) for name, one in inputs.items()}


@torch.no_grad()
def of_the_decoder(model: CoupledModel, data: Data) -> dict[str, float]:
    """Return what is known of T1 after training."""
    model.eval()
    x, y = data.train
    features = features_of(data)
    drawn = torch.cat([model.reconstruct_source(features=part) for part in features.split(256)])
    explained = 1 - float((drawn - x).square().mean() / (x - x.mean(0)).square().mean())
    known = y >= 0
    says = linear_probe(features[known], y[known])(features).argmax(1)
    read = linear_probe(_pixels(drawn)[known], y[known])(_pixels(drawn)).argmax(1)
    agreed = float((says == read)[~known].float().mean()) if (~known).any() else float("nan")
    return {"drawn": round(explained, 3), "agreed": round(100 * agreed, 1)}


def run(task: Task, row: str, data: Data, seed: int) -> dict[str, Any]:
    """Train a row; measure it on validation images, or on test images of a task kept back."""
    settings: dict[str, Any] = {
        ALONE: {"preset": "paper", "variant": "direct"},
        DEFAULT: {},
        COUPLED: {"variant": "gfi"},
        COUPLED_3: {"variant": "gfi"},
    }[row]
    plugins = [Teacher(by_labels=True).plugin(data)] if row == COUPLED_3 else []
    torch.manual_seed(seed)
    start = time.perf_counter()
    model, network = coupled(task, data, seed, plugins, **settings)
    seconds = round(time.perf_counter() - start, 1)
    part = data.validation if task.development else data.test
    found = {"accuracy": round(accuracy(network, *part), 2), "seconds": seconds}
    if row == ALONE:
        found |= indicators(data)
    if row == COUPLED:
        found |= of_the_decoder(model, data)
    return found


def kept_runs() -> Runs:
    """Return the runs that are there."""
    settings = {"width": WIDTH, "batch": BATCH, "adam_lr": LEARNING_RATE}
    return Runs(FOLDER / "decoder.json", ("task", "row", "seed"), settings, PACKAGES)


def table() -> str:
    """Write accuracies, a row for each task, with what was known, in Markdown."""
    runs = kept_runs().runs
    parts = []
    for development, title in ((True, "Development, validation"), (False, "Kept back, test")):
        lines = []
        for name, task in TASKS.items():
            own = [r for r in runs if r["task"] == name]
            if task.development != development or not own:
                continue
            by_row = [[r["accuracy"] for r in own if r["row"] == row] for row in ROWS]
            known = [[r[key] for r in own if r.get(key) == r.get(key, "") != ""] for key in KNOWN]
            digits = [2 if key == "drawn" else 0 for key in KNOWN]
            lines.append(
                [name, *(cell(values) for values in by_row)]
                + [cell(v, d) for v, d in zip(known, digits, strict=True)]
            )
        if lines:
            parts.append(markdown.table([f"{title} accuracy %", *ROWS, *KNOWN], lines))
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--tasks", default="", help="names, separated by ;")
    parser.add_argument("--rows", default=";".join(ROWS), help="names, separated by ;")
    parser.add_argument("--seeds", default="100", help="numbers, separated by commas")
    given = parser.parse_args(arguments)
    run_missing(kept_runs(), TASKS, given, run)
    (FOLDER / "decoder.md").write_text(table())


if __name__ == "__main__":
    main()
