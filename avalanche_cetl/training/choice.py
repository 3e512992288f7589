"""Choice: which of a preset's plugins take part, by the profile of the experience's data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from avalanche_cetl.plugins.base import CETLPlugin, Strategy
from avalanche_cetl.plugins.losses import LossPlugin
from avalanche_cetl.training.data import TrainingData

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataProfile:
    """What an experience has for training.

    :ivar labelled: target rows with a label.
    :ivar unlabelled: target rows without one.
    :ivar others: labelled rows of another domain.
    :ivar has_source: whether there is an S.
    :ivar classes: of the labelled rows of either domain.
    :ivar known: of these, classes with a labelled target row.
    :ivar source_accuracy: how well S itself names the other domain's labelled rows, of 512 at
        most: the mean over classes of the share that it names right. None where S has no classifier
        of as many classes as T2, and where target rows have labels or there are no others.
    :ivar source_classifies: whether S has a classifier of as many classes as T2.
    :ivar no_logits: where it has not, why, for errors.
    """

    labelled: int
    unlabelled: int
    others: int
    has_source: bool
    classes: int = 0
    known: int = 0
    source_accuracy: float | None = None
    source_classifies: bool = False
    no_logits: str = ""

    @classmethod
    def of(cls, data: TrainingData, size: int, device: torch.device) -> DataProfile:
        """Return that of the experience in training.

        :param data: its rows.
        :param size: rows that S reads at once.
        :param device: where S is.
        """
        rows = data.rows
        known = [int(label) for label in rows.target.targets if int(label) >= 0]
        others = len(rows.labelled) - len(known)
        has_source = data.model.source is not None
        accuracy = None
        if others and not known and has_source:
            accuracy = data.source_accuracy(size, device)
        return cls(
            labelled=len(known),
            unlabelled=len(rows.target) - len(known),
            others=others,
            has_source=has_source,
            classes=len(data.classes),
            known=len(set(known)),
            source_accuracy=accuracy,
            source_classifies=data.source_classifies,
            no_logits=data.no_logits,
        )

    @property
    def same_classes(self) -> bool:
        """Whether S's classes are T2's: it is nearer to naming all of them right than to chance."""
        if self.source_accuracy is None or self.classes < 2:
            return False
        return self.source_accuracy >= (1 + 1 / self.classes) / 2

    def __str__(self) -> str:
        source = "a source network" if self.has_source else "no source network"
        if self.source_accuracy is not None:
            source += f" that names {self.source_accuracy:.0%} of them right"
        return ", ".join(
            [
                f"{self.labelled} labelled target rows",
                f"{self.unlabelled} without label",
                f"{self.others} labelled rows of another domain",
                source,
            ]
        )


def _always(profile: DataProfile) -> bool:
    """Return True: a plugin takes part whatever the data are."""
    return True


class Rule(NamedTuple):
    """When a plugin of a preset takes part.

    :ivar make: makes the plugin, a new one for each strategy.
    :ivar fits: of the data profile; it may also fit where it adds nothing, and raise ValueError
        where nothing can be learnt without the plugin.
    :ivar weight: of the data profile, the plugin's weight; None: as it was made.
    """

    make: Callable[[], LossPlugin]
    fits: Callable[[DataProfile], bool] = _always
    weight: Callable[[DataProfile], float] | None = None


class _WithData(Strategy, Protocol):
    """What :class:`Choice` reads of a strategy."""

    train_mb_size: int

    @property
    def data(self) -> TrainingData:
        """Return the rows of the experience in training."""


class Choice(CETLPlugin):
    """Lets those plugins of a preset take part that fit the experience, and logs which.

    The line goes to Python's logging, level INFO, under the name of this module.

    :param plugins: each with its rule.
    :ivar told: the line of the latest experience.
    """

    def __init__(self, plugins: Sequence[tuple[LossPlugin, Rule]]):
        super().__init__()
        self.plugins = list(plugins)
        for plugin, rule in plugins:
            plugin.varying = ("weight",) if rule.weight is not None else ()
        self.told = ""

    def before_training_exp(self, strategy: _WithData, *args: Any, **kwargs: Any) -> None:
        """Look at the experience and choose."""
        size = max(64, strategy.train_mb_size)
        profile = DataProfile.of(strategy.data, size, strategy.device)
        shown = []
        for plugin, rule in self.plugins:
            plugin.enabled = rule.fits(profile)
            if not plugin.enabled:
                continue
            if rule.weight is not None:
                plugin.weight = rule.weight(profile)
            shown.append(f"{type(plugin).__name__} (weight {plugin.weight:g})")
        chosen = ", ".join(shown) if shown else "the labels alone"
        self.told = f"experience {strategy.data.number} has {profile}: {chosen}"
        logger.info(self.told)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Let all take part again: the next experience is checked before the choice is made."""
        for plugin, _ in self.plugins:
            plugin.enabled = True

    def state_dict(self) -> dict[str, Any]:
        """Return the latest line, for checkpoints; the plugins are kept as the strategy's own."""
        return {"told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the latest line."""
        self.told = state["told"]
