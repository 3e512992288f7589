"""Parts: what a strategy is made of, and what plugins read of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_cetl.allocation import Allocation
from avalanche_cetl.allocation.importance import Importance
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.described import Described
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.plugins.base import Stage, names_of
from avalanche_cetl.training.checks import check_finite_loss, check_taken_names
from avalanche_cetl.training.data import TrainingData
from avalanche_cetl.training.meters import LossMeters
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.optimizers import StageOptimizers
from avalanche_cetl.training.options import Options
from avalanche_cetl.training.progress import TrainingProgress
from avalanche_cetl.training.recipe import Recipe


class Parts(Options, Described):
    """The parts of a strategy; :class:`~avalanche_cetl.plugins.Training` says what plugins read.

    :ivar training_data: the rows of the experience in training; None outside of it.
    :ivar batches: of the step, by the rows that they hold.
    :ivar resume: where training stands, and where a loaded checkpoint lets it go on.
    """

    has_stages = True
    batches: dict[str, Batch]
    resume: TrainingProgress
    clock: Any
    device: torch.device
    train_mb_size: int

    def make_parts(self, recipe: Recipe) -> None:
        """Make the parts of the options that were given."""
        check_taken_names(self.plugins, recipe.variant.name, recipe.variant.recorded)
        self._recipe, self.engine = recipe, recipe.engine()
        self.networks = Networks(self.model, recipe, self.engine.functions, self._criterion)
        self.allocation = Allocation(recipe.variant.importance, recipe.gfi, recipe.dwa_lambda)
        self.optimizers = StageOptimizers()
        self.meters = LossMeters(names_of(self.plugins))
        self.resume = TrainingProgress()
        self.training_data: TrainingData | None = None
        self.batches: dict[str, Batch] = {}
        self._follow_variant()

    def argument(self, name: str, default: Any) -> Any:
        """Return an option as it was given: what a preset gives instead follows from its name."""
        recipe: Recipe | None = getattr(self, "_recipe", None)  # None: Avalanche warns meanwhile
        if recipe is not None and name in recipe.given:
            return recipe.given[name]
        return super().argument(name, default)

    def settings(self) -> dict[str, Any]:
        """Return what has to be as it was for a checkpoint to go on, by name."""
        own = {"train_mb_size": self.train_mb_size, "accumulate": self.engine.accumulate}
        result: dict[str, Any] = self.recipe.describe() | own | {"precision": self.engine.precision}
        return result

    def parts(self) -> dict[str, Any]:
        """Return the parts that training changes, with ``state_dict`` and ``load_state_dict``."""
        parts = {"networks": self.networks, "allocation": self.allocation}
        own = {"stages": self.optimizers} if self.optimizers.modules else {}
        return {**parts, "records": self.meters, "resume": self.resume, **own}

    @property
    def stage(self) -> Stage:
        """Return the :class:`Stage` that runs, or ran last."""
        return self.running.kind

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the rows that the stage reads, where plugins may add losses to it."""
        return self.running.plugin_rows

    def batch_of(self, rows: str) -> Batch | None:
        """Return the step's mini-batch of ``"target"`` or ``"labelled"`` rows; None without one."""
        return self.batches.get(rows)

    @property
    def coupled(self) -> Batch | None:
        """Return the step's mini-batch of target rows, where T2 has run on it; else None."""
        batch = self.batches.get("target")
        return None if batch is None or batch.latest is None else batch

    @property
    def importance(self) -> dict[str, Importance]:
        """Return the latest GFI1 to GFI3."""
        return self.allocation.importance

    @property
    def source(self) -> Encoder | None:
        """Return the source network S; None without one."""
        return self.model.source  # type: ignore[return-value]

    @property
    def alone(self) -> bool:
        """Return whether no other process trains."""
        return self.engine.parallel.alone

    @property
    def data(self) -> TrainingData:
        """Return the rows of the experience in training, which are there within ``train()``."""
        assert self.training_data is not None, "target images are there during training only"
        return self.training_data

    def target_sample(self, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the first target rows of the experience in training, or all of fewer.

        Images ``(count, C, H, W)`` without training augmentation, labels (-1: unknown), and S's
        features where the benchmark has them.
        """
        batch = self.data.sample(range(min(count, self.data.counts[0])), self.device)
        return batch.images, batch.labels, batch.features

    def labelled_features(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Return S's features ``(N, dim)`` of the N >= 0 target rows with a label, and the labels.

        They are on the CPU. S runs where the benchmark has no features of it.
        """
        return self.data.labelled_features(source, max(64, self.train_mb_size), self.device)

    def target_logits(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Return S's features ``(N, dim)`` and logits ``(N, K)`` of N target rows, on the CPU.

        They are all rows, or 10,000 of more. S runs where the benchmark has no features of it.
        """
        return self.data.target_logits(source, max(64, self.train_mb_size), self.device)

    @property
    def labelled_classes(self) -> tuple[int, ...]:
        """Return the classes that labelled rows of the experience have, in either domain."""
        return self.data.classes

    @property
    def reconstructs(self) -> bool:
        """Return whether a stage draws images from T2's code."""
        return self.variant.reconstructs

    @property
    def round_losses(self) -> dict[str, float]:
        """Mean losses and penalties of the current (or last) round, by name."""
        return self.meters.result()

    def announce(self, names: Sequence[str]) -> None:
        """Tell loggers the names of losses that will be recorded."""
        self.meters.announce(names)

    def record_loss(self, name: str, loss: Tensor, x: Tensor) -> None:
        """Take a plugin's loss of a mini-batch ``x`` into ``round_losses``, under ``name``.

        :param loss: a scalar, the mean over the batch of images x, without its weight.
        :raises NonFiniteLossError: when it is NaN or infinite.
        """
        check_finite_loss(name, loss, x, self.clock, self.running.label)
        batch = self.batches.get("target", self.batches.get("labelled"))
        counts = batch is None or batch.share
        self.meters.add(name, float(loss.detach()), len(x) if counts else 0)
