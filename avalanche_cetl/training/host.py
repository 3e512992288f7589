"""Host: what the rounds and steps of training read of the strategy."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from avalanche_cetl.allocation import Allocation
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Strategy, Training
from avalanche_cetl.training.data import TrainingData
from avalanche_cetl.training.engine import Engine
from avalanche_cetl.training.meters import LossMeters
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.optimizers import StageOptimizers
from avalanche_cetl.training.progress import TrainingProgress
from avalanche_cetl.training.recipe import Recipe
from avalanche_cetl.training.stages import TrainingStage


class Host(Strategy, Training, Protocol):
    """A strategy with stages: Avalanche's loop, what plugins read, and the parts of training.

    :ivar running: the stage that runs, or ran last.
    :ivar batches: of the step, by the rows that they hold: ``"target"``, ``"labelled"``.
    """

    model: CoupledModel
    engine: Engine
    networks: Networks
    allocation: Allocation
    optimizers: StageOptimizers
    meters: LossMeters
    resume: TrainingProgress
    running: TrainingStage
    batches: dict[str, Batch]
    dataloader: Any
    _stop_training: bool

    @property
    def recipe(self) -> Recipe:
        """Return the options that decide what is learnt, as they are now."""

    @property
    def data(self) -> TrainingData:
        """Return the rows of the experience in training."""

    def forward(self) -> Tensor:
        """Return T2's logits of ``mbatch``."""

    def backward(self) -> None:
        """Differentiate ``loss``."""

    def optimizer_step(self) -> None:
        """Step the user's optimiser."""

    def _make_empty_loss(self) -> Tensor: ...
