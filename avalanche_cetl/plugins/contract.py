"""The contract between a strategy and its plugins: the stages, and what a plugin may read.

A plugin reads a strategy through :class:`Training`, and through what every Avalanche strategy has
(``model``, ``optimizer``, ``clock``, ``mbatch``, ``mb_output``, ``loss``, ...). A strategy without
stages, such as ``Naive``, has a stand-in: ask for either with :func:`training_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_cetl.encoders import Encoder


class Stage(Enum):
    """The stages of Algorithm 1, and the single step that ``joint`` and ``two_step`` take."""

    SOURCE = "stage 1"  #: T1 learns L_rs
    COUPLED = "stage 2"  #: T1 and T2 learn L_rt
    CLASSIFY = "stage 3"  #: T2 learns L_c
    MERGED = "merged"  #: several losses in one step


class CoupledStep(NamedTuple):
    """What stage 2 computed on a mini-batch of N target images.

    :ivar images: x, ``(N, C, H, W)``.
    :ivar features: S's features ``(N, dim)``; None without S.
    :ivar goal: T1(S(x)), detached; without S, x itself.
    :ivar reconstruction: T1(T2(x)).
    :ivar logits: T2's, ``(N, K)``.
    :ivar goal_hidden: T1's hidden layers as read from S's code, detached; empty without S, and
        where no plugin has ``reads_decoder_hidden = True``.
    :ivar hidden: the same as read from T2's code.
    :ivar labels: ``(N,)``, -1 where there is none.
    :ivar tasks: task labels, ``(N,)``.
    """

    images: Tensor
    features: Tensor | None
    goal: Tensor
    reconstruction: Tensor
    logits: Tensor
    goal_hidden: list[Tensor]
    hidden: list[Tensor]
    labels: Tensor
    tasks: Tensor


class Training(Protocol):
    """What a plugin may read of a strategy beside what every Avalanche strategy has.

    :ivar has_stages: whether a round has stages; False for the stand-in of a stock strategy.
    :ivar stage: the stage that runs; ``Stage.CLASSIFY`` in a stock strategy.
    :ivar reads: ``"labelled"``, ``"target"`` or both: the rows that the stage reads; empty where
        plugins add no loss to its steps (stage 1). A stock strategy reads labelled rows.
    :ivar coupled: what stage 2, or another stage that runs T2 on target rows, computed on its
        latest mini-batch; None elsewhere.
    :ivar source: S of the ``CoupledModel``; None where there is none.
    :ivar labelled_classes: of the labelled rows of the experience, in either domain; empty where
        there is none, and in a stock strategy.
    :ivar alone: whether this process trains without others.
    :ivar round_losses: the round's mean losses and penalties so far, by name.
    """

    has_stages: bool

    @property
    def stage(self) -> Stage:
        """Return the stage that runs."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Return which rows the stage that runs reads, of those that plugins add losses for."""

    @property
    def coupled(self) -> CoupledStep | None:
        """Return what the stage computed on target rows."""

    @property
    def source(self) -> Any:
        """Return S, or None."""

    @property
    def alone(self) -> bool:
        """Return whether there is no other process."""

    @property
    def round_losses(self) -> dict[str, float]:
        """Return the round's means."""

    @property
    def labelled_classes(self) -> tuple[int, ...]:
        """Return the classes that labelled rows of the experience have; empty: none is known."""

    def announce(self, names: Sequence[str]) -> None:
        """Tell loggers the names of losses that will be recorded."""

    def record_loss(self, name: str, loss: Tensor, x: Tensor) -> None:
        """Take a loss of a mini-batch of images into the round's mean of that name."""

    def row_share_of(self, rows: str) -> float:
        """Return what a mean over these rows of a step is to be multiplied by."""

    def labelled_features(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Return S's features of the target rows that have a label, and the labels."""


class StockTraining:
    """The stand-in for :class:`Training` of a strategy without stages: all of it is stage 3.

    Losses are not recorded.

    :param strategy: an Avalanche strategy.
    """

    has_stages = False
    stage = Stage.CLASSIFY
    reads: tuple[str, ...] = ("labelled",)
    coupled = None
    alone = True
    labelled_classes: tuple[int, ...] = ()

    def __init__(self, strategy: Any):
        self.strategy = strategy
        self.round_losses: dict[str, float] = {}

    @property
    def source(self) -> Any:
        """Return S of a ``CoupledModel``; None for other networks."""
        return getattr(self.strategy.model, "source", None)

    def announce(self, names: Sequence[str]) -> None:
        """Do nothing: a stock strategy keeps no losses by name."""

    def record_loss(self, name: str, loss: Tensor, x: Tensor) -> None:
        """Do nothing: a stock strategy keeps no losses by name."""

    def row_share_of(self, rows: str) -> float:
        """Return 1: all rows of a mini-batch are here."""
        return 1.0

    def labelled_features(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Raise TypeError: a stock strategy does not read target rows by themselves."""
        raise TypeError(f"a {type(self.strategy).__name__} does not tell target rows from others.")


def training_of(strategy: Any) -> Training:
    """Return what a plugin may read of a strategy: its own, or the stand-in of a stock one."""
    return strategy if getattr(strategy, "has_stages", False) is True else StockTraining(strategy)


class CETLPlugin(SupervisedPlugin):
    """Base class of plugins that also listen to the stages of a round.

    The callbacks find the stage in ``strategy.stage``. With ``alternate="epoch"`` a stage
    is one pass over its data, with ``"iteration"`` one mini-batch. A plugin that reads T1's
    hidden layers (``strategy.coupled``) sets ``reads_decoder_hidden``.

    :cvar names: of the losses that it records, by which they reach loggers; a preset's plugin
        gives way to one with the same names.
    :ivar varying: names of those arguments of the constructor that training changes: a checkpoint
        restores them, and refuses others that differ.
    """

    varying: tuple[str, ...] = ()
    reads_decoder_hidden: bool = False
    names: tuple[str, ...] = ()

    @property
    def teaches_without_labels(self) -> bool:
        """Whether T2 learns classes from it without a label: data may then have none."""
        return False

    def fits(self, model: Any) -> bool:
        """Return whether a preset may add this plugin beside such a model; by default it may."""
        return True

    def before_stage(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call before each stage."""

    def after_stage(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call after each stage."""

    def after_step(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call after each step in stages 1 and 2; in the others ``after_update`` is called."""

    def after_round(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call after each round, when metrics, evaluation and clock are done with it."""


def names_of(plugins: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of all losses that plugins record, each once."""
    found = [name for plugin in plugins for name in getattr(plugin, "names", ())]
    return tuple(dict.fromkeys(found))


def teach_without_labels(plugins: Sequence[Any]) -> bool:
    """Return whether T2 learns classes from any plugin without a label."""
    return any(getattr(plugin, "teaches_without_labels", False) for plugin in plugins)


def reads_decoder_hidden(plugins: Sequence[Any]) -> bool:
    """Return whether any plugin reads T1's hidden layers."""
    return any(getattr(plugin, "reads_decoder_hidden", False) for plugin in plugins)
