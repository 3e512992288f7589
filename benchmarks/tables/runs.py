"""Results of single runs: one JSON file each, written once, never typed by hand."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from benchmarks.tables.where import HERE, Where

#: Results of the repository; elsewhere with ``CETL_RESULTS``.
FOLDER = Path(os.environ.get("CETL_RESULTS") or Path(__file__).parents[1] / "results" / "tables")
SCALES = ("smoke", "cpu", "full")
#: What says that a data set is not on disk, or that weights cannot be downloaded.
NOT_THERE = (FileNotFoundError, URLError, ConnectionError, TimeoutError)


def file_of(table: str, scale: str, row: str, seed: int) -> Path:
    """Where the result of a run is kept."""
    safe = row.replace(" ", "_").replace("/", "-")
    return FOLDER / table / scale / f"{safe}-seed{seed}.json"


def run_once(
    table: str,
    scale: str,
    row: str,
    seed: int,
    settings: dict[str, Any],
    job: Callable[[], Any],
    where: Where = HERE,
) -> dict[str, Any]:
    """Run a job whose result is not there yet, and keep it with all that made it.

    :param settings: everything that the result depends on besides the code.
    :param job: gives a dict of figures.
    :raises ValueError: when there is a result of other settings.
    """
    path = file_of(table, scale, row, seed)
    settings = json.loads(json.dumps(settings))
    if path.exists():
        found = json.loads(path.read_text())
        if found["settings"] != settings:
            raise ValueError(f"{path} was made with other settings; remove it to run again.")
        return found
    start = time.perf_counter()
    torch.manual_seed(seed)
    figures = job()
    document = {
        "table": table,
        "scale": scale,
        "row": row,
        "seed": seed,
        "settings": settings,
        "figures": figures,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(),
        "machine": machine(where.device),
        "where": asdict(where),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(unfinished, path)
    return document


def versions() -> dict[str, str]:
    """Of Python and of every package that takes part."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "avalanche-lib", "avalanche-cetl", "skada"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine(device: str) -> str:
    """Kind of machine: processor kind and number of threads, or the GPU's name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def results(table: str, scale: str) -> dict[str, dict[int, dict[str, Any]]]:
    """All results of a table: by row, by seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((FOLDER / table / scale).glob("*.json")):
        document = json.loads(path.read_text())
        found.setdefault(document["row"], {})[document["seed"]] = document
    return found


def those_there(names: list[str], ask: Callable[[str], Any], required: bool = False) -> list[str]:
    """Give the names whose data and weights can be had; say of the others that they are not run.

    :param ask: raises when something is missing.
    :param required: whether every one of them has to be there.
    :raises OSError: what ``ask`` raised, when one is required, or there is none.
    """
    found, missing = [], None
    for name in names:
        try:
            ask(name)
        except NOT_THERE as problem:
            if required:
                raise
            print(f"{name}: not run. {problem}")
            missing = problem
        else:
            found.append(name)
    if missing is not None and not found:
        raise missing
    return found


def accuracies(runs: dict[int, dict[str, Any]]) -> list[float]:
    """Give the test accuracies of a row's runs, by seed."""
    return [runs[seed]["figures"]["accuracy"] for seed in sorted(runs)]


def mean(values: list[float], digits: int = 1, sign: bool = False) -> str:
    """Mean with standard error, ``"91.2 ± 0.3"``; without the error for a single value."""
    text = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text


def cell(values: list[float], digits: int = 1, sign: bool = False, empty: str = "") -> str:
    """Mean with standard error, as a table shows it; ``empty`` where there are no values."""
    return mean(values, digits, sign) if values else empty


def paired(runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> list[float]:
    """Differences in accuracy of the seeds that both have."""
    return [
        runs[seed]["figures"]["accuracy"] - others[seed]["figures"]["accuracy"]
        for seed in sorted(runs.keys() & others.keys())
    ]
