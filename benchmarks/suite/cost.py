"""How long the default takes beside soft targets: ``python -m benchmarks.suite.cost``.

Processor time of whole trainings, one thread, soft targets and ``CETLStrategy`` as it comes in
turn, on tasks of the suite; S's features are stored, as in the suite. Results go to
``benchmarks/results/suite/cost.json``, run by run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch

from benchmarks import markdown
from benchmarks.suite.rows import ROWS
from benchmarks.suite.runs import FOLDER, PACKAGES, Runs
from benchmarks.suite.tasks import BATCH, TASKS, WIDTH

SOFT, DEFAULT = "soft targets", "CETL, preset best"
CHOSEN = (
    "optdigits, 10 labels",
    "CIFAR-10, 20 labels and 100 more images",
    "CIFAR-10, 200 labels",
    "CIFAR-10, distillation",
    "MN-US",
    "MN-US, no source data",
)
REPEATS = 2


def kept_runs() -> Runs:
    """Return the runs that are there."""
    settings = {"width": WIDTH, "batch": BATCH}
    return Runs(FOLDER / "cost.json", ("task", "row", "repeat"), settings, PACKAGES)


def table() -> str:
    """Write seconds and ratios in Markdown."""
    kept, lines = kept_runs(), []
    for name in CHOSEN:
        found = [[kept.find(name, row, k) for k in range(REPEATS)] for row in (SOFT, DEFAULT)]
        soft, default = ([run["seconds"] for run in runs if run] for runs in found)
        if soft and default:
            ratio = statistics.mean(default) / statistics.mean(soft)
            lines.append([name, *(f"{statistics.mean(v):.0f}" for v in (soft, default))])
            lines[-1].append(f"{ratio:.2f}")
    header = ["seconds of the processor", SOFT, "CETLStrategy(...)", "ratio"]
    return markdown.table(header, lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept = kept_runs()
    for name in CHOSEN:
        task = TASKS[name]
        data = task.make(given.data_root, 0)
        for repeat in range(REPEATS):
            for row in (SOFT, DEFAULT):
                if kept.find(name, row, repeat) is None:
                    torch.manual_seed(0)
                    start = time.process_time()
                    ROWS[row].train(task, data, 0, 0.0)
                    spent = round(time.process_time() - start, 2)
                    kept.add({"task": name, "row": row, "repeat": repeat, "seconds": spent})
                    print(name, row, repeat, spent, flush=True)
    (FOLDER / "cost.md").write_text(table())


if __name__ == "__main__":
    main()
