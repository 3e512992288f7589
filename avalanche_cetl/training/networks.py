"""Networks: S, T1 and T2 as the stages of training run them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.caches import copied
from avalanche_cetl.common.modes import lone_sample
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.engine import ForwardFunctions


class Inputs(Protocol):
    """What the networks read of a recipe: see :class:`~avalanche_cetl.training.recipe.Recipe`."""

    @property
    def augment(self) -> Callable[[Tensor], Tensor] | None:
        """Return the random views of a mini-batch."""

    @property
    def input_noise(self) -> float:
        """Return the share of T2's input pixels that are set to zero in stage 2."""

    @property
    def fixed_goal(self) -> bool:
        """Return whether stage 2 reconstructs what T1 made of S when the stage began."""

    @property
    def gfi(self) -> GFISettings:
        """Return the settings of GFI; the seed of the noise follows theirs."""


class StageModules(dict[str, nn.Module]):
    """The modules that stages bring themselves, by the label of the stage."""

    def __missing__(self, label: str) -> nn.Module:
        raise ValueError(f"stage {label!r} has no module: its make_module(model) returns one.")


class Networks:
    """S, T1 and T2 as the stages run them: what they see, in which form, what they reconstruct.

    :param model: the coupled network.
    :param inputs: the recipe of the training.
    :param functions: T1's and T2's forward functions, compiled or not.
    :param criterion: L_c, ``(logits, labels) -> scalar``.
    :ivar hidden: whether T1's hidden layers come along with its images.
    :ivar modules: those that stages bring themselves, by the label of the stage.
    :ivar latest: T2's logits in its latest pass of the step, ``(N, K)``; None before.
    :ivar warned_of_pictures: whether a warning said that T1's pictures are far too large.
    """

    def __init__(
        self,
        model: CoupledModel,
        inputs: Inputs,
        functions: ForwardFunctions,
        criterion: Callable[[Any, Tensor], Tensor],
    ):
        self.model, self.inputs, self.criterion = model, inputs, criterion
        self.functions = functions
        self.modules = StageModules()
        self.hidden = False
        self.warned_of_pictures = False
        self.latest: Tensor | None = None
        self._fixed: tuple[nn.Module, nn.Module] | None = None  # copies of T1 and S's adapter
        self._noise = torch.Generator().manual_seed(inputs.gfi.seed + 1)

    @property
    def has_source(self) -> bool:
        """Whether there is an S."""
        return self.model.source is not None

    def lone_sample(self, batch: Batch) -> AbstractContextManager[None]:
        """Return the context in which a mini-batch of one row passes BatchNorm."""
        return lone_sample(len(batch), self.model, *(self._fixed or ()))

    def configure(self, inputs: Inputs) -> None:
        """Take another recipe; the noise begins anew where its seed is another one."""
        if inputs.gfi.seed != self.inputs.gfi.seed:
            self._noise.manual_seed(inputs.gfi.seed + 1)
        begins = inputs.fixed_goal and not self.inputs.fixed_goal
        self.inputs = inputs
        if begins:  # maybe in the middle of stage 2
            self.fix_target()

    def fix_target(self) -> None:
        """Keep T1 as it is now for the reconstruction target, where the recipe wants that."""
        adapter = self.model.source_adapter
        if not self.inputs.fixed_goal or adapter is None:
            return
        if self._fixed is None:
            self._fixed = copied(self.model.decoder), copied(adapter)
            for fixed in self._fixed:
                fixed.requires_grad_(False)
            return
        for fixed, now in zip(self._fixed, (self.model.decoder, adapter), strict=True):
            fixed.load_state_dict(now.state_dict())

    def source_features(self, batch: Batch) -> Tensor:
        """Return S's features of a mini-batch: stored, or computed once for all stages."""
        if batch.features is None:
            batch.features = self.model.source_features(batch.images)
        return batch.features

    def reconstruct_source(self, batch: Batch) -> Tensor:
        """Return T1(S(x))."""
        code = self.model.source_code(features=self.source_features(batch))
        return self.functions.decode(self.model.decoder, code)

    @torch.no_grad()
    def reconstruction_target(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return T1(S(x)), or x without S, with T1's hidden layers where they are read."""
        if not self.has_source:
            return batch.images, []
        features = self.source_features(batch)
        if self.inputs.fixed_goal:
            assert self._fixed is not None, "fix_target() comes first"
            decoder, adapter = self._fixed
            return self.decode(adapter(features), decoder)
        return self.decode(self.model.source_code(features=features))

    def view(self, x: Tensor) -> Tensor:
        """Return what T2 sees of a mini-batch of training images.

        :raises ValueError: when ``augment=`` changes its shape.
        """
        augment = self.inputs.augment
        if augment is None:
            return x
        view = augment(own_copy(x))
        if view.shape != x.shape:
            raise ValueError(
                f"augment= changed a mini-batch of shape {tuple(x.shape)} to {tuple(view.shape)}."
            )
        return self.functions.laid_out(view)

    def noisy(self, x: Tensor) -> Tensor:
        """Return images with a share of their pixels set to zero, in all channels."""
        share = self.inputs.input_noise
        if share == 0:
            return x
        keep = torch.rand(x.shape[0], 1, *x.shape[2:], generator=self._noise)
        return x * (keep.to(x.device) >= share)

    def encode(self, x: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Return T2's code, as T1 reads it, and T2's logits."""
        code, self.latest = self.functions.encode(self.model, x, tasks)
        return code, self.latest

    def logits(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Return T2's logits."""
        self.latest = self.functions.logits(self.model, x, tasks)
        return self.latest

    def decode(self, code: Tensor, decoder: nn.Module | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return T1's image of a code, with its hidden layers where they are read.

        :param code: as T1 reads it.
        :param decoder: a copy of T1; default: T1 itself.
        """
        decoder = self.model.decoder if decoder is None else decoder
        if not self.hidden:
            return self.functions.decode(decoder, code), []
        image, hidden = self.functions.decode_hidden(decoder, code)
        return image, [layer.float() for layer in hidden]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the noise, for checkpoints."""
        return {"noise": self._noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the noise."""
        self._noise.set_state(state["noise"])


class MultiTaskCoupledModel(CoupledModel, MultiTaskModule, takes_task_labels=True):
    """The coupled network whose T2 has heads by task: its forward pass reads task labels.

    To Avalanche it is a ``MultiTaskModule``: heads grow with the tasks of the stream, training
    and evaluation pick each image's own. S and T1 are shared by all tasks.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, task_labels: Tensor | None
    ) -> Tensor:
        """Return T2's class logits ``(N, K)``, each image's from the head of its task.

        :param x: images ``(N, C, H, W)``.
        :param task_labels: ``(N,)``; None: a dict of every known task's logits.
        """
        result: Tensor = self.target(x, task_labels)
        return result
