"""Results: written once, with all that made them, and never typed by hand.

A run of a table is one file (:class:`Run`, :func:`run_once`). An experiment of many short runs is
one file too (:class:`Runs`), written run by run. Both keep settings, seeds, versions and seconds,
and refuse a result of other settings. Pages show means with standard errors
(:func:`mean_and_error`).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.where import HERE, Where

RESULTS = Path(__file__).parent / "results"
#: Results of the tables; elsewhere with ``CETL_RESULTS``.
TABLES = Path(os.environ.get("CETL_RESULTS") or RESULTS / "tables")
PACKAGES = ("torch", "torchvision", "timm", "avalanche-lib", "avalanche-cetl", "skada")


# ------------------------------------------------------------------ files


def read(path: Path) -> Any:
    """Return what a result file holds."""
    return json.loads(path.read_text())


def write(path: Path, document: Any) -> None:
    """Write a result file whole: who reads it meanwhile finds the old one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(unfinished, path)


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of packages, by name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine(device: str) -> str:
    """Return the kind of machine: processor and number of threads, or the GPU's name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def settings_as_read(settings: dict[str, Any]) -> Any:
    """Return settings as a file holds them: no tuples, names only."""
    return json.loads(json.dumps(settings))


def _check(path: Path, found: dict[str, Any], settings: Any) -> None:
    if found["settings"] != settings:
        raise ValueError(f"{path} was made with other settings; remove it to run again.")


# ------------------------------------------------------------------ one run, one file


@dataclass(frozen=True)
class Run:
    """A run of a table, as its file is named.

    :ivar row: the row's title, with the data set before it where every row has several.
    """

    table: str
    scale: str
    row: str
    seed: int

    @property
    def path(self) -> Path:
        """Return where its result is kept."""
        safe = self.row.replace(" ", "_").replace("/", "-")
        return TABLES / self.table / self.scale / f"{safe}-seed{self.seed}.json"


def run_once(
    run: Run,
    settings: dict[str, Any],
    job: Callable[[], Any],
    where: Where = HERE,
    *,
    again: bool = False,
) -> dict[str, Any]:
    """Run a job whose result is not there yet, and keep it with all that made it.

    :param settings: everything that the result depends on besides the code.
    :param job: returns a dict of figures.
    :param again: whether a result that is there gives way to this one.
    :return: the file's content.
    :raises ValueError: when there is a result of other settings.
    """
    settings = settings_as_read(settings)
    if run.path.exists() and not again:
        found = read(run.path)
        _check(run.path, found, settings)
        return found
    start = time.perf_counter()
    torch.manual_seed(run.seed)
    figures = job()
    document = {
        **asdict(run),
        "settings": settings,
        "figures": figures,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(),
        "machine": machine(where.device),
        "where": asdict(where),
    }
    write(run.path, document)
    return document


def results(table: str, scale: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return all results of a table: by row, by seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((TABLES / table / scale).glob("*.json")):
        document = read(path)
        found.setdefault(document["row"], {})[document["seed"]] = document
    return found


# ------------------------------------------------------------------ many runs, one file


class Runs:
    """The runs of one experiment in one file, each found again by some of its values.

    :param keys: names of those values.
    :param settings: what is the same for all runs.
    :param packages: whose versions are kept: the first runs' for all, and with a run of other
        versions its own.
    :raises ValueError: when the file is of other settings.
    """

    def __init__(
        self, path: Path, keys: Sequence[str], settings: dict[str, Any], packages: Sequence[str]
    ):
        self.path, self.keys, self.versions = path, keys, versions(packages)
        settings = settings_as_read(settings)
        if path.exists():
            self.document = read(path)
            _check(path, self.document, settings)
        else:
            self.document = {"runs": [], "settings": settings, "versions": self.versions}

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Return all runs, oldest first."""
        found: list[dict[str, Any]] = self.document["runs"]
        return found

    def find(self, *values: Any) -> dict[str, Any] | None:
        """Return the run of these values of the keys, if it is there."""
        for run in self.runs:
            if tuple(run[key] for key in self.keys) == values:
                return run
        return None

    def add(self, run: dict[str, Any]) -> None:
        """Keep a run: in the file at once, so that a stopped experiment goes on behind it."""
        if self.versions != self.document["versions"]:
            run["versions"] = self.versions
        self.runs.append(run)
        write(self.path, self.document)


# ------------------------------------------------------------------ means


def error(values: Sequence[float]) -> float:
    """Compute the standard error of a mean; 0 for a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def mean_and_error(values: Sequence[float], digits: int = 1, sign: bool = False) -> str:
    """Write a mean with its standard error, ``"91.2 ± 0.3"``; a single value without."""
    text = f"{statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    if len(values) > 1:
        text += f" ± {error(values):.{digits}f}"
    return text


def cell(values: Sequence[float], digits: int = 1, sign: bool = False, empty: str = "") -> str:
    """Write the same as a table shows it; ``empty`` where there are no values."""
    return mean_and_error(values, digits, sign) if values else empty


def shown_mean(values: Sequence[float], digits: int = 1) -> float | None:
    """Return the mean as a cell shows it, to compare cells by; None without values."""
    return round(statistics.mean(values), digits) if values else None


def accuracies(runs: dict[int, dict[str, Any]]) -> list[float]:
    """Return the test accuracies of a row's runs, by seed."""
    return [runs[seed]["figures"]["accuracy"] for seed in sorted(runs)]


def paired(runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> list[float]:
    """Return the differences in accuracy of the seeds that both have."""
    return [
        runs[seed]["figures"]["accuracy"] - others[seed]["figures"]["accuracy"]
        for seed in sorted(runs.keys() & others.keys())
    ]
