"""LossMeters: the mean losses of a round, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from avalanche_cetl.common.processes import Processes


class LossMeters:
    """Means over the rows of a round of named losses and penalties.

    :param names: of the losses that the stages record.
    :ivar names: of all losses that were announced, or recorded without being announced.
    """

    def __init__(self, names: Iterable[str] = ()):
        self.names: list[str] = list(dict.fromkeys(names))
        self._sums: dict[str, float] = {}
        self._rows: dict[str, int] = {}

    def announce(self, names: Iterable[str]) -> None:
        """Take names of losses that will be recorded."""
        self.names += [name for name in names if name not in self.names]

    def begin(self) -> None:
        """Forget the last round's means."""
        self._sums, self._rows = {}, {}

    def add(self, name: str, value: float, rows: int) -> None:
        """Take one mean over so many rows in."""
        self.announce([name])
        self._sums[name] = self._sums.get(name, 0.0) + value * rows
        self._rows[name] = self._rows.get(name, 0) + rows

    def merge(self, processes: Processes) -> None:
        """Take in what the other processes counted; all do so at once."""
        if processes.alone:
            return
        counts = processes.meet((self._sums, self._rows))
        self.begin()
        for sums, rows in counts:
            for name in sums:
                self._sums[name] = self._sums.get(name, 0.0) + sums[name]
                self._rows[name] = self._rows.get(name, 0) + rows[name]

    def result(self) -> dict[str, float]:
        """Return the means so far."""
        return {
            name: total / rows for name, total in self._sums.items() if (rows := self._rows[name])
        }

    def state_dict(self) -> dict[str, Any]:
        """Return sums and rows, for checkpoints."""
        return {"sums": dict(self._sums), "rows": dict(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore sums and rows."""
        self._sums, self._rows = dict(state["sums"]), dict(state["rows"])
