"""What a strategy and its plugins agree on: the stages, and what a plugin may read.

A plugin reads a strategy through :class:`Strategy`, what every Avalanche strategy has, and through
:class:`Training`. A strategy without stages, such as ``Naive``, has a stand-in for the latter: ask
for either with :func:`training_of`.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from enum import Enum
from typing import Any, Protocol

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.described import Described
from avalanche_cetl.common.labels import features_in
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.encoders import Encoder


class Stage(Enum):
    """The stages of Algorithm 1, and the single step that ``joint`` and ``two_step`` take."""

    SOURCE = "stage 1"  #: T1 learns L_rs
    COUPLED = "stage 2"  #: T1 and T2 learn L_rt
    CLASSIFY = "stage 3"  #: T2 learns L_c
    MERGED = "merged"  #: several losses in one step


class Strategy(Protocol):
    """What this package reads of any supervised strategy of Avalanche, under Avalanche's names."""

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    plugins: list[Any]
    evaluator: Any
    clock: Any
    experience: Any
    adapted_dataset: Any
    mbatch: list[Tensor]
    mb_output: Any
    loss: Tensor
    train_epochs: int


class Training(Protocol):
    """What a plugin, and the loop, read of a strategy beside what every Avalanche strategy has.

    :ivar has_stages: whether a round has stages; False for the stand-in of a stock strategy.
    """

    has_stages: bool

    @property
    def stage(self) -> Stage:
        """Return the stage that runs; ``Stage.CLASSIFY`` in a stock strategy."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the rows that the stage reads, of ``"labelled"`` and ``"target"``.

        Empty where plugins add no loss to its steps (stage 1). A stock strategy reads labelled
        rows.
        """

    def batch_of(self, rows: str) -> Batch | None:
        """Return the step's mini-batch of ``"labelled"`` or ``"target"`` rows; None without one."""

    @property
    def coupled(self) -> Batch | None:
        """Return the step's mini-batch of target rows, where T2 has run on it; else None."""

    @property
    def source(self) -> Any:
        """Return S of the ``CoupledModel``; None where there is none."""

    @property
    def alone(self) -> bool:
        """Return whether this process trains without others."""

    @property
    def round_losses(self) -> dict[str, float]:
        """Return the round's mean losses and penalties so far, by name."""

    @property
    def labelled_classes(self) -> tuple[int, ...]:
        """Return the classes of the experience's labelled rows, in either domain.

        Empty where there is none, and in a stock strategy.
        """

    @property
    def reconstructs(self) -> bool:
        """Return whether a stage draws images from T2's code; not so in a stock strategy."""

    def announce(self, names: Sequence[str]) -> None:
        """Tell loggers the names of losses that will be recorded."""

    def record_loss(self, name: str, loss: Tensor, x: Tensor) -> None:
        """Take a loss of a mini-batch of images into the round's mean of that name."""

    def labelled_features(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Return S's features of the target rows that have a label, and the labels."""

    def target_logits(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Return S's features and logits of target rows."""


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
    reconstructs = False

    def __init__(self, strategy: Strategy):
        self.strategy = strategy
        self.round_losses: dict[str, float] = {}

    def batch_of(self, rows: str) -> Batch | None:
        """Return the mini-batch, whose rows are all labelled ones; None for other rows."""
        strategy = self.strategy
        if rows != "labelled" or strategy.mb_output is None:
            return None
        tensors = list(strategy.mbatch)
        batch = Batch(tensors, features_in(strategy.adapted_dataset, tensors))
        batch.logits = strategy.mb_output
        return batch

    @property
    def source(self) -> Any:
        """Return S of a ``CoupledModel``; None for other networks."""
        return getattr(self.strategy.model, "source", None)

    def announce(self, names: Sequence[str]) -> None:
        """Do nothing: a stock strategy keeps no losses by name."""

    def record_loss(self, name: str, loss: Tensor, x: Tensor) -> None:
        """Do nothing: a stock strategy keeps no losses by name."""

    def labelled_features(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Raise TypeError: a stock strategy does not read target rows by themselves."""
        raise TypeError(f"a {type(self.strategy).__name__} does not tell target rows from others.")

    target_logits = labelled_features


def training_of(strategy: Any) -> Training:
    """Return what a plugin may read of a strategy: its own, or the stand-in of a stock one."""
    return strategy if getattr(strategy, "has_stages", False) is True else StockTraining(strategy)


class CETLPlugin(SupervisedPlugin, Described):
    """Base class of plugins that also listen to the stages of a round.

    The callbacks find the stage in ``strategy.stage``. With ``alternate="epoch"`` a stage
    is some epochs over its data, with ``"iteration"`` one mini-batch. A plugin that reads T1's
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

    def fits(self, model: nn.Module) -> bool:
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
    names = [name for plugin in plugins for name in getattr(plugin, "names", ())]
    return tuple(dict.fromkeys(names))


def check_loss(owner: str, name: str, loss: Any, learns: bool) -> None:
    """Raise TypeError for a loss that is no scalar tensor, and warn of one that trains nothing.

    A constant 0 is a mini-batch without anything to learn.

    :param owner: who computed it, for messages.
    :param name: of the loss.
    :param loss: as it was computed.
    :param learns: whether there is something to train, so that the loss should have a gradient.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        given = repr(loss)
        if isinstance(loss, Tensor):
            given = f"a tensor of shape {tuple(loss.shape)} and type {loss.dtype}"
        elif isinstance(loss, Sized):
            given = f"a {type(loss).__name__}"
        raise TypeError(f"{owner} gave as {name} {given}: a scalar tensor of floats, please.")
    if learns and not loss.requires_grad and float(loss):
        warn_caller(
            f"{name} of {owner} has no gradient, so it trains nothing: compute it from the "
            "network's outputs, without detach() or no_grad()."
        )
