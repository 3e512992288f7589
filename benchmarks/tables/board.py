"""Runs the rows of any table: strengths are chosen first, then each seed reads the test once.

A table is a :class:`Table`; its module calls it ``TABLE``. What a row trains is its method, what
a table measures is the table's: :mod:`benchmarks.tables.photographs` and
:mod:`benchmarks.tables.adaptation`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any
from urllib.error import URLError

from avalanche_cetl.training import parse_preset
from benchmarks.jobs import run_all
from benchmarks.methods.cetl import earlier
from benchmarks.methods.job import Job, in_half_the_rounds
from benchmarks.records import Run, read, results, run_once, settings_as_read
from benchmarks.tables.rows import Row
from benchmarks.where import HERE, Where

TUNING_SEED = 100
#: What says that a data set is not on disk, or that weights cannot be downloaded.
NOT_THERE = (FileNotFoundError, URLError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Place:
    """A row of a table at a scale on a data set, and where it is computed."""

    table: str
    scale: str
    root: str
    row: str
    data: str
    where: Where = HERE

    @property
    def the_table(self) -> Table:
        """Return the table itself."""
        found: Table = import_module(f"benchmarks.tables.{self.table}").TABLE
        return found

    @property
    def the_row(self) -> Row:
        """Return the row itself."""
        return self.the_table.rows[self.row]

    @property
    def title(self) -> str:
        """Return the name of its results."""
        return self.the_table.title(self.the_row, self.data)

    @property
    def budget(self) -> Any:
        """Return what it may spend."""
        return self.the_table.budget(self)

    def settings(self, strength: float | None = None) -> dict[str, Any]:
        """Return what its result depends on; the strength, if one is given and the row has any."""
        row = self.the_row
        found = {k: v for k, v in asdict(self.budget).items() if k not in row.unread}
        if row.as_it_comes:
            found["preset"] = earlier(row.preset).describe()
        elif row.preset is not None:
            found["preset"] = parse_preset(row.preset, row.variant).describe()
        if row.strengths and strength is not None:
            found["strength"] = strength
        return found | self.the_table.more_settings(self)


class Table(ABC):
    """Rows, and how their runs are made and measured.

    :param name: of the module and of the results' folder.
    :param budgets: by scale.
    :param columns: by scale the data sets that every row is run on; without, a row brings its own.
    """

    def __init__(
        self,
        name: str,
        rows: dict[str, Row],
        budgets: Mapping[str, Any],
        columns: Mapping[str, tuple[str, ...]] | None = None,
    ):
        self.name, self.rows, self.budgets, self.columns = name, rows, budgets, columns

    @abstractmethod
    def job(self, place: Place, seed: int, strength: float) -> Job:
        """Make what a row's method takes."""

    @abstractmethod
    def score(self, place: Place, job: Job, network: Any) -> float:
        """Compute what a strength is chosen by, more is better; no test image is read."""

    @abstractmethod
    def figures(self, place: Place, job: Job, network: Any) -> dict[str, Any]:
        """Read the test set once."""

    @abstractmethod
    def ask(self, place: Place) -> None:
        """See whether its data and weights are there, and lay ready what its runs share.

        :raises OSError: when something is missing.
        """

    @abstractmethod
    def more_settings(self, place: Place) -> dict[str, Any]:
        """Return what a result depends on besides the budget and the preset."""

    @abstractmethod
    def render(self, scale: str) -> str:
        """Write the table in Markdown, from the result files alone."""

    def summary(self, figures: dict[str, Any]) -> str:
        """Write what is printed of a run that has ended."""
        return f"{figures['accuracy']:.2f} %"

    def budget(self, place: Place) -> Any:
        """Return what a row may spend."""
        row = place.the_row
        found = replace(self.budgets[place.scale], **dict(row.changes))
        return in_half_the_rounds(found) if row.mixed else found

    def title(self, row: Row, data: str) -> str:
        """Return the name of a row's results on a data set."""
        return f"{data} {row.title}" if self.columns else row.title

    def part(self, tuning: bool) -> Table:
        """Return the table of the rows that count, or of those that only served to choose."""
        found = copy(self)
        found.rows = {id: row for id, row in self.rows.items() if row.tuning == tuning}
        return found

    def find(self, name: str) -> Row:
        """Return the row of an id or a title.

        :raises ValueError: when there is none.
        """
        for row in self.rows.values():
            if name in (row.id, row.title):
                return row
        known = ", ".join(f"{row.id} ({row.title})" for row in self.rows.values())
        raise ValueError(f"{self.name} has no row {name!r}; it has {known}.")

    def results(self, scale: str) -> dict[str, dict[int, dict[str, Any]]]:
        """Return all results: by title, by seed."""
        return results(self.name, scale)

    def places(
        self, scale: str, root: str, names: list[str] | None = None, where: Where = HERE
    ) -> list[Place]:
        """Return where rows are run at a scale, data set by data set; all rows by default."""
        chosen = [self.find(name) for name in names] if names else list(self.rows.values())
        return [
            Place(self.name, scale, root, row.id, data or row.data, where)
            for data in (self.columns[scale] if self.columns else (None,))
            for row in chosen
            if scale in row.scales
        ]


# ------------------------------------------------------------------ runs


def tune(place: Place) -> str:
    """Choose a row's strength, with a seed of its own.

    Where the row has more strengths than were tried, the others alone are run.
    """
    table, row = place.the_table, place.the_row
    settings = place.settings() | {"strengths": row.strengths}
    before = fewer_strengths(tuning_of(place), settings)
    known = {} if before is None else before["figures"]["scores"]

    def scores() -> dict[str, Any]:
        found = {}
        for strength in row.strengths:
            if str(strength) in known:
                found[strength] = known[str(strength)]
                continue
            job = table.job(place, TUNING_SEED, strength)
            score = table.score(place, job, row.method(job))
            found[strength] = score if math.isfinite(score) else -math.inf
        best = max(found, key=lambda strength: found[strength])
        figures = {"chosen": best, "scores": {str(k): v for k, v in found.items()}}
        if before is None:
            return figures
        kept = {name: before[name] for name in ("seconds", "versions", "machine")}
        earlier = before["figures"].get("before", [])
        return figures | {"before": [*earlier, kept | {"strengths": list(known)}]}

    made = run_once(tuning_of(place), settings, scores, place.where, again=before is not None)
    figures = made["figures"]
    return f"{place.title}: strength {figures['chosen']}, of {figures['scores']}"


def fewer_strengths(run: Run, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return a choice that was made among fewer strengths, all else being the same.

    :param settings: as they are now, with ``"strengths"``.
    """
    if not run.path.exists():
        return None
    found: dict[str, Any] = read(run.path)
    tried = found["settings"].get("strengths", [])
    wanted = settings_as_read(settings)
    same = found["settings"] | {"strengths": wanted["strengths"]} == wanted
    return found if same and set(tried) < set(wanted["strengths"]) else None


def tuning_of(place: Place) -> Run:
    """Return the run that chooses a row's strength."""
    return Run(place.table, place.scale, f"{place.title} (tuning)", TUNING_SEED)


def tuned_as(place: Place) -> Place:
    """Return the place whose strength this one takes, on that row's own data set."""
    row = place.the_row.tuned_as
    if row is None:
        return place
    table = place.the_table
    return replace(place, row=row, data=place.data if table.columns else table.rows[row].data)


def strength_of(place: Place) -> float:
    """Return a row's strength, which was chosen before if there is a choice."""
    row = place.the_row
    if len(row.strengths) < 2:
        return row.strengths[0] if row.strengths else 0.0
    chosen: float = read(tuning_of(tuned_as(place)).path)["figures"]["chosen"]
    return chosen


def one(place: Place, seed: int) -> str:
    """Train a row with a seed, its strength chosen before, and measure it."""
    table, strength = place.the_table, strength_of(place)

    def job() -> dict[str, Any]:
        own = table.job(place, seed, strength)
        return table.figures(place, own, place.the_row.method(own))

    run = Run(place.table, place.scale, place.title, seed)
    figures = run_once(run, place.settings(strength), job, place.where)["figures"]
    return f"{place.title}, seed {seed}: {table.summary(figures)}"


def run(
    table: Table,
    scale: str,
    root: str,
    seeds: int,
    rows: list[str] | None = None,
    processes: int = 1,
    device: str = "cpu",
) -> None:
    """Run what is missing, seed by seed; all rows by default.

    What has no data or no weights of its source stays as it is, "not run".

    :raises OSError: when nothing else is left, or a row was asked for by name whose own data set
        or source is not there.
    """
    places = table.places(scale, root, rows, Where.of(scale, device))
    by_need: dict[str, list[Place]] = {}
    for place in places:
        by_need.setdefault(place.data if table.columns else place.title, []).append(place)
    required = bool(rows) and not table.columns
    there = those_there(list(by_need), lambda need: table.ask(by_need[need][0]), required)
    places = [place for need in there for place in by_need[need]]
    tuned = dict.fromkeys(tuned_as(place) for place in places if len(place.the_row.strengths) > 1)
    run_all(tune, [(place,) for place in tuned], processes)
    run_all(one, [(place, seed) for seed in range(seeds) for place in places], processes)


def those_there(names: list[str], ask: Callable[[str], Any], required: bool = False) -> list[str]:
    """Return the names whose data and weights can be had; say of the others that they are not run.

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
