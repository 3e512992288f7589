"""TrainingStage: all that defines a stage of a round, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from torch import Tensor, nn

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.described import Described
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.networks import Networks


class Callbacks(Enum):
    """Which of Avalanche's callbacks fire in the steps of a stage."""

    NONE = "none"
    #: ``before_backward``, so that penalties hold T2, and ``hold_weights`` after the step.
    PENALTIES = "penalties"
    #: The whole of Avalanche's training iteration, with ``mb_output`` and ``loss``.
    ALL = "all"


class Payment(NamedTuple):
    """A DWA penalty: the importance that it reads, and the name that it is recorded under."""

    importance: str
    name: str


class TrainingStage(Described):
    """Base class of the stages: class attributes say what a stage does, ``losses`` how.

    A stage does not depend on devices, precision, mini-batches to a step or other processes, nor
    on the strategy.

    :cvar kind: which stage plugins take it for; it decides ``stage_epochs`` and ``lr_factors``.
    :cvar name: of the stage in errors and checkpoints, other than those of other stages of the
        variant; default: that of its kind.
    :cvar reads: ``"target"``: all rows of domain 0; ``"labelled"``: rows with a label.
    :cvar beside: ``"target"`` where each step reads a mini-batch of those rows too.
    :cvar trains: whose parameters its optimiser steps, of ``"decoder"`` (T1 with its adapters)
        and ``"target"`` (T2). With ``Callbacks.ALL`` that is the user's optimiser, and None means
        whatever that holds; else an optimiser of the stage's own.
    :cvar epochs: how often it passes over its data in a round, >= 1; None: as ``stage_epochs`` say
        for its kind.
    :cvar lr_factor: factor on the learning rates of the user's optimiser, finite and > 0; None: as
        ``lr_factors`` say for its kind.
    :cvar names: of the losses that it computes.
    :cvar pays: the penalty that is added to them; None: no penalty.
    :cvar measures: importances measured after it, of ``"GFI1"``, ``"GFI2"``, ``"GFI3"``.
    :cvar callbacks: which of Avalanche's callbacks fire.
    :cvar needs_source: whether the stage falls away without S.
    """

    kind: Stage = Stage.COUPLED
    name: str = ""
    reads: str = "target"
    beside: str | None = None
    trains: tuple[str, ...] | None = ("decoder", "target")
    epochs: int | None = None
    lr_factor: float | None = None
    names: tuple[str, ...] = ()
    pays: Payment | None = None
    measures: tuple[str, ...] = ()
    callbacks: Callbacks = Callbacks.PENALTIES
    needs_source: bool = False

    @property
    def label(self) -> str:
        """Return the stage's name in errors and checkpoints."""
        return self.name or self.kind.value

    @property
    def own_optimizer(self) -> bool:
        """Whether the stage steps an optimiser of its own, and not the user's."""
        return self.callbacks is not Callbacks.ALL

    @property
    def plugin_rows(self) -> tuple[str, ...]:
        """The rows of a step, ``"labelled"``, ``"target"``, for which plugins may add losses."""
        if self.callbacks is Callbacks.NONE:
            return ()
        return (self.reads,) if self.beside is None else (self.reads, self.beside)

    def make_module(self, model: CoupledModel) -> nn.Module | None:
        """Return a module that only this stage has, such as a projection head; None: none.

        Each strategy has its own, which :meth:`losses` finds in ``networks.modules`` under the
        stage's name. The stage's optimiser steps its parameters, with the settings of the user's
        first parameter group, and checkpoints hold it.

        :param model: the coupled network.
        """
        return None

    def parameters(self, model: CoupledModel) -> list[nn.Parameter]:
        """Return the parameters of T1 and T2 that the stage trains; all where it names none."""
        groups = {"decoder": model.decoder_parameters, "target": model.target_parameters}
        chosen = groups if self.trains is None else self.trains
        return [p for name in chosen for p in groups[name]().values()]

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a mini-batch by name: scalars, means over its rows.

        Where the stage runs T2 on the rows by ``networks.encode`` or ``networks.logits``, plugins
        that read such rows add their losses, of the logits of its latest pass. Where that pass had
        other rows (two views of each image), the stage sets ``batch.logits`` to those of the
        mini-batch's rows; without them such a plugin raises a ValueError.
        """
        raise NotImplementedError

    def pieces(self, batches: dict[str, Batch]) -> Iterator[tuple[TrainingStage, Batch]]:
        """Yield the stages whose losses make a step, each with the mini-batch that it reads.

        :param batches: of the step, by the rows that they hold.
        """
        yield self, batches[self.reads]
