"""The mean losses of a round, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from avalanche_cetl.common.processes import Processes


class Means:
    """Running means of named scalars, weighted by rows."""

    def __init__(
        self, sums: Mapping[str, float] | None = None, rows: Mapping[str, int] | None = None
    ) -> None:
        self._sums: dict[str, float] = defaultdict(float, sums or {})
        self._rows: dict[str, int] = defaultdict(int, rows or {})

    def add(self, name: str, value: float, rows: int) -> None:
        """Take one mean over so many rows in."""
        self._sums[name] += value * rows
        self._rows[name] += rows

    def merge(self, processes: Processes) -> None:
        """Take in what the other processes counted; all do so at once."""
        if processes.alone:
            return
        found = processes.meet((dict(self._sums), dict(self._rows)))
        self._sums.clear()
        self._rows.clear()
        for sums, rows in found:
            for name in sums:
                self._sums[name] += sums[name]
                self._rows[name] += rows[name]

    def result(self) -> dict[str, float]:
        """Give the means so far."""
        return {
            name: total / rows for name, total in self._sums.items() if (rows := self._rows[name])
        }
