"""The stages of a round: one class each, with all that defines it in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NamedTuple

from avalanche.core import BasePlugin
from torch import Tensor, nn
from torch.nn import functional as F

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
    :cvar may_be_constant: whether its losses may have no gradient while there is something to
        train; else a warning says so.
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
    may_be_constant: bool = False

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
        raise NotImplementedError(f"{type(self).__name__} has no method losses().")

    @property
    def parts(self) -> tuple[TrainingStage, ...]:
        """The stages whose losses make a step: it alone, or those that are merged in it."""
        return (self,)

    def pieces(self, batches: dict[str, Batch]) -> Iterator[tuple[TrainingStage, Batch]]:
        """Yield the stages whose losses make a step, each with the mini-batch that it reads.

        :param batches: of the step, by the rows that they hold.
        """
        return ((part, batches[part.reads]) for part in self.parts if part.reads in batches)


class SourceStage(TrainingStage):
    r"""Stage 1, eq. 2: :math:`L_{rs} = |T_1(S(x)) - x|^2`, mean over batch and pixels."""

    kind = Stage.SOURCE
    trains = ("decoder",)
    may_be_constant = True
    names = ("L_rs",)
    pays = Payment("GFI2", "DWA2")
    measures = ("GFI1",)
    callbacks = Callbacks.NONE
    needs_source = True

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return L_rs."""
        with networks.lone_sample(batch):
            image = networks.reconstruct_source(batch)
            return {"L_rs": F.mse_loss(image.float(), batch.images)}


class CoupledStage(TrainingStage):
    r"""Stage 2, eq. 5: :math:`L_{rt} = |T_1(T_2(x)) - T_1(S(x))|^2`, mean over batch and pixels.

    The reconstruction target T1(S(x)) is that of the clean image, and constant; without S it is x
    itself. T2 sees the image through ``augment=`` and ``input_noise=``.

    :param trains: ``("decoder", "target")``, or ``("target",)`` with a T1 that is fixed.
    """

    kind = Stage.COUPLED
    may_be_constant = True
    names = ("L_rt",)
    pays = Payment("GFI1", "DWA1")
    measures = ("GFI2", "GFI3")

    def __init__(self, trains: tuple[str, ...] = ("decoder", "target")):
        self.trains = trains

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return L_rt; the batch then has both reconstructions, and T1's hidden layers."""
        with networks.lone_sample(batch):
            target, batch.hidden_target = networks.reconstruction_target(batch)
            seen = networks.noisy(networks.view(batch.images))
            code, _ = networks.encode(seen, batch.tasks)
            reconstruction, batch.hidden = networks.decode(code)
        batch.reconstruction, batch.reconstruction_target = reconstruction.float(), target.float()
        return {"L_rt": F.mse_loss(batch.reconstruction, batch.reconstruction_target)}


class LabelledRows(nn.Module):
    """A criterion that leaves unlabelled rows (label -1) out of the mean.

    Plugins hand whole data sets to ``strategy._criterion`` (EWC's importances do), so the
    data rule has to hold there too. Without any labelled row the loss is 0.

    :param criterion: ``(outputs, labels) -> scalar``.
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.criterion = criterion

    @classmethod
    def of(cls, criterion: Callable[[Tensor, Tensor], Tensor] | None) -> Any:
        """Return a criterion that reads labelled rows alone; None stands for cross entropy.

        Criteria that are Avalanche plugins see to it themselves.
        """
        if isinstance(criterion, BasePlugin):
            return criterion
        return cls(nn.CrossEntropyLoss() if criterion is None else criterion)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the criterion over the labelled rows."""
        if labels.is_floating_point() or bool((labels >= 0).all()):
            return self.criterion(outputs, labels)
        known = labels >= 0
        if not known.any():
            return outputs.sum() * 0
        return self.criterion(outputs[known], labels[known])


class ClassifyStage(TrainingStage):
    """Stage 3: L_c, the criterion of T2's logits and the labels (eq. 4)."""

    kind = Stage.CLASSIFY
    reads = "labelled"
    trains = None
    may_be_constant = True
    names = ("L_c",)
    pays = Payment("GFI3", "DWA3")
    callbacks = Callbacks.ALL

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return L_c."""
        return {"L_c": networks.criterion(batch.logits, batch.labels)}


class MergedStage(TrainingStage):
    r"""One step on the sum of other stages' losses; Avalanche's callbacks all fire.

    The weights of the losses are ``loss_weights``; variant ``"joint"`` minimises

    .. math:: \lambda_1 L_{rs} + \lambda_2 L_c + \lambda_3 L_{rt} \quad \text{(eq. 6)}

    and ``"two_step"``, with :math:`\lambda = \lambda_2 / (\lambda_2 + \lambda_3)`,

    .. math:: \lambda L_c + (1 - \lambda) L_{rt} \quad \text{(eq. 3)}

    Where an experience has no labelled row, its steps are those of the target rows alone.

    :param stages: those of labelled rows first, then those of the target rows beside them.
    :param trains: see :class:`TrainingStage`.
    """

    kind = Stage.MERGED
    reads = "labelled"
    beside = "target"
    callbacks = Callbacks.ALL

    def __init__(
        self, stages: tuple[TrainingStage, ...], trains: tuple[str, ...] | None = None
    ) -> None:
        self.stages, self.trains = stages, trains
        self.names = tuple(name for stage in stages for name in stage.names)

    @property
    def parts(self) -> tuple[TrainingStage, ...]:
        """The merged stages."""
        return self.stages


class DirectStage(TrainingStage):
    """T2 reads target rows, with or without label; plugins with ``rows="target"`` add losses.

    It has no loss of its own, and T1 does not run.
    """

    kind = Stage.COUPLED
    trains = ("target",)

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Run T2 on a view of the images."""
        seen = networks.noisy(networks.view(batch.images))
        with networks.lone_sample(batch):
            networks.encode(seen, batch.tasks)
        return {}
