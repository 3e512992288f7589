"""Should S and T2 see the same view? ``python -m benchmarks.suite.same_views --data-root DIR``.

Labels and soft targets of a probe, as ``CETLStrategy`` has them as it comes, on tasks of the suite,
with as many steps for every row; development tasks on validation images. The probe is fitted on the
clean images, and its weight counts images, not their views. Beyer et al. 2022 (arXiv 2106.05237)
found it best for distillation that the teacher sees the student's view, and that there are many.

- views of T2 alone: S reads the clean image once, T2 random views of it. This is how it comes.
- K stored views: K views of each image are made before training, S reads each, and T2 trains on the
  same K views, with the image's label where it has one.
- mixed: four mixtures of each image without a label (``with_mixed_images``), T2 sees views of them.
- mixed, stored views: a view of each image and of K - 1 mixtures, which S reads too.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from avalanche_cetl import (
    CETLStrategy,
    CoupledModel,
    Encoder,
    PrecomputedEncoder,
    SoftTargets,
    linear_probe,
    mixed_images,
)
from avalanche_cetl.training.choice import DataProfile
from avalanche_cetl.training.presets import ProbeWeight
from benchmarks import markdown
from benchmarks.data.draws import DRAW_SEED
from benchmarks.data.sets import read_data
from benchmarks.methods.job import TransferBudget
from benchmarks.methods.plain import accuracy, cosine
from benchmarks.methods.sources import efficientnet_lite
from benchmarks.records import cell
from benchmarks.suite.runs import FOLDER, PACKAGES, Runs
from benchmarks.suite.tasks import BATCH, LEARNING_RATE, TASKS, WIDTH, Data, new_network
from benchmarks.where import HERE

#: By task: labels per class, more images per class; None: digits, whose S is a network itself.
CHOSEN: dict[str, tuple[int, int] | None] = {
    "CIFAR-10, 20 labels": (20, 0),
    "CIFAR-10, 20 labels and 100 more images": (20, 100),
    "optdigits, 10 labels": None,
    "CIFAR-10, 200 labels": (200, 0),
}
#: By row: views of each image, whether S sees them, whether all but the first are mixtures.
ROWS = {
    "views of T2 alone": (1, False, False),
    "4 stored views": (4, True, False),
    "mixed": (5, False, True),
    "mixed, 5 stored views": (5, True, True),
}


def _source(name: str, root: str, data: Data) -> tuple[Encoder, Callable[[Tensor], Tensor]]:
    """Return S, and what brings T2's images into the range that S reads."""
    drawn = CHOSEN[name]
    if drawn is None:
        return data.source, lambda x: x
    found = read_data("CIFAR-10", root, drawn[0], 50, drawn[1], 0, 200)
    budget = TransferBudget(
        per_class=drawn[0], epochs=1, width=WIDTH, warmup_epochs=0, image_size=96
    )
    return efficientnet_lite(0)(budget, root, HERE), found.pixels.restore


def _weight(labels: Tensor) -> float:
    """Return the weight that the preset gives a probe on such rows."""
    labelled = int((labels >= 0).sum())
    classes = len(labels[labels >= 0].unique())
    data = DataProfile(labelled, len(labels) - labelled, 0, True, classes, classes)
    return ProbeWeight()(data)


def run(name: str, row: str, root: str, data: Data, seed: int) -> dict[str, Any]:
    """Train a row; measure it on validation images, or on test images of a task kept back."""
    task, (count, same, mixed) = TASKS[name], ROWS[row]
    source, restored = _source(name, root, data)
    torch.manual_seed(seed)
    start = time.perf_counter()
    x, y = data.train
    if mixed:
        more = mixed_images(x, (count - 1) * len(x), DRAW_SEED)
        x, y = torch.cat([x, more]), torch.cat([y, torch.full((len(more),), -1)])
    elif count > 1:
        x, y = x.repeat(count, 1, 1, 1), y.repeat(count)
    weight = _weight(y if mixed else data.train[1])
    if same:
        x = torch.cat([task.augment(part) for part in x.split(500)])
    with torch.no_grad():
        features = torch.cat([source(restored(part)) for part in x.split(64)])
        clean = torch.cat([source(restored(part)) for part in data.train[0].split(64)])
    known = data.train[1] >= 0
    probe = linear_probe(clean[known], data.train[1][known])
    asked = time.perf_counter() - start
    own = replace(data, train=(x, y), source=PrecomputedEncoder(features))
    network = new_network(own, seed)
    model = CoupledModel.build(own.source, network, own.shape)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    rounds = max(1, round(task.rounds / count))
    CETLStrategy(
        model=model,
        optimizer=optimizer,
        augment=None if same else task.augment,
        train_mb_size=BATCH,
        train_epochs=rounds,
        evaluator=None,
        plugins=[
            cosine(optimizer, rounds),
            SoftTargets(weight=weight, temperature=2.0, rows="target", head=probe),
        ],
        variant="direct",
        preset="paper",
    ).train(own.benchmark().train_stream)
    seconds = time.perf_counter() - start
    part = data.validation if task.development else data.test
    return {
        "accuracy": round(accuracy(network, *part), 2),
        "seconds": round(seconds, 1),
        "of S": round(asked, 1),
        "steps": rounds * -(-len(x) // BATCH),
    }


def kept_runs() -> Runs:
    """Return the runs that are there."""
    settings = {"width": WIDTH, "batch": BATCH, "adam_lr": LEARNING_RATE}
    return Runs(FOLDER / "same_views.json", ("task", "row", "seed"), settings, PACKAGES)


def table() -> str:
    """Write accuracies, a row for each task, in Markdown."""
    runs, lines = kept_runs().runs, []
    for name in CHOSEN:
        of = {r: [x for x in runs if (x["task"], x["row"]) == (name, r)] for r in ROWS}
        if any(of.values()):
            lines.append([name, *(cell([x["accuracy"] for x in found]) for found in of.values())])
    return markdown.table(["accuracy %", *ROWS], lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--tasks", default=";".join(CHOSEN), help="names, separated by ;")
    parser.add_argument("--rows", default=";".join(ROWS), help="names, separated by ;")
    parser.add_argument("--seeds", default="100,101", help="numbers, separated by commas")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept = kept_runs()
    for name in given.tasks.split(";"):
        for seed in map(int, given.seeds.split(",")):
            rows = [row for row in given.rows.split(";") if not kept.find(name, row, seed)]
            data = TASKS[name].make(given.data_root, seed) if rows else None
            for row in rows:
                assert data is not None
                found = {"task": name, "row": row, "seed": seed}
                found |= run(name, row, given.data_root, data, seed)
                print(*found.values(), sep=" | ", flush=True)
                kept.add(found)
    (FOLDER / "same_views.md").write_text(table())


if __name__ == "__main__":
    main()
