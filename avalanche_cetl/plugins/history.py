"""What a run leaves behind: its losses round by round, and the count of its epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_cetl.common.described import Described
from avalanche_cetl.plugins.base import Strategy, training_of


class History(SupervisedPlugin, Described):
    """Keeps the mean losses and penalties of every round.

    :ivar rounds: one dict a round, by name; empty ones in a strategy without stages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[dict[str, float]] = []

    def after_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take a round's means."""
        self.rounds.append(dict(training_of(strategy).round_losses))

    def table(self) -> dict[str, list[float]]:
        """Return every loss round by round; not a number where it did not occur."""
        names = sorted({name for row in self.rounds for name in row})
        return {name: [row.get(name, float("nan")) for row in self.rounds] for name in names}


class Progress(SupervisedPlugin, Described):
    """Calls a function after every training epoch (round), for a progress bar.

    :param tick: takes no arguments.
    """

    def __init__(self, tick: Callable[[], Any]):
        super().__init__()
        self.tick = tick

    def after_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Count one."""
        self.tick()
