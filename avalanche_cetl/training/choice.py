"""Choice: which of a preset's plugins take part, by what the experience has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from avalanche_cetl.plugins.contract import CETLPlugin
from avalanche_cetl.plugins.losses import LossPlugin

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Situation:
    """What an experience has for training.

    :ivar labelled: target rows with a label.
    :ivar unlabelled: target rows without one.
    :ivar others: labelled rows of another domain.
    :ivar has_source: whether there is an S.
    """

    labelled: int
    unlabelled: int
    others: int
    has_source: bool

    @classmethod
    def of(cls, host: Any) -> Situation:
        """Return that of a strategy's experience in training."""
        rows = host.data.rows
        labelled = sum(int(label) >= 0 for label in rows.target.targets)
        return cls(
            labelled=labelled,
            unlabelled=len(rows.target) - labelled,
            others=len(rows.labelled) - labelled,
            has_source=host.source is not None,
        )

    def __str__(self) -> str:
        shown = [
            f"{self.labelled} labelled target rows",
            f"{self.unlabelled} without label",
            f"{self.others} labelled rows of another domain",
            "a source network" if self.has_source else "no source network",
        ]
        return ", ".join(shown)


class Rule(NamedTuple):
    """When a plugin of a preset takes part.

    :ivar make: makes the plugin, a new one for each strategy.
    :ivar fits: of the situation; it may also fit where it adds nothing.
    """

    make: Callable[[], LossPlugin]
    fits: Callable[[Situation], bool] = lambda _: True


class Choice(CETLPlugin):
    """Lets those plugins of a preset take part that fit the experience, and logs which.

    The line goes to Python's logging, level INFO, under the name of this module.

    :param plugins: each with what it fits.
    :ivar told: the line of the latest experience.
    """

    def __init__(self, plugins: Sequence[tuple[LossPlugin, Callable[[Situation], bool]]]):
        super().__init__()
        self.plugins = list(plugins)
        self.told = ""

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Look at the experience and choose."""
        situation = Situation.of(strategy)
        for plugin, fits in self.plugins:
            plugin.enabled = fits(situation)
        names = [type(plugin).__name__ for plugin, _ in self.plugins if plugin.enabled]
        chosen = ", ".join(names) if names else "the labels alone"
        self.told = f"experience {strategy.data.number} has {situation}: {chosen}"
        logger.info(self.told)

    def state_dict(self) -> dict[str, Any]:
        """Return the latest line, for checkpoints; the plugins are kept as the strategy's own."""
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self.told = state["told"]
