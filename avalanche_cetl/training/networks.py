"""Networks: S, T1 and T2 as the stages of training run them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.modes import lone_sample
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.batch import Batch
from avalanche_cetl.training.engine.passes import Passes
from avalanche_cetl.training.goal import FixedGoal


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
        """Return whether the goal of stage 2 comes from T1 as it was when the stage began."""

    @property
    def gfi(self) -> GFISettings:
        """Return the settings of GFI; the seed of the noise follows theirs."""


class Networks:
    """S, T1 and T2 as the stages run them: what they see, in which form, with which goal.

    :param model: the coupled network.
    :param inputs: the recipe of the training.
    :param passes: how T1's and T2's passes are computed.
    :param criterion: L_c, ``(logits, labels) -> scalar``.
    :ivar hidden: whether T1's hidden layers come along with its images.
    :ivar latest: T2's logits in its latest pass of the step, ``(N, K)``; None before.
    """

    def __init__(
        self,
        model: CoupledModel,
        inputs: Inputs,
        passes: Passes,
        criterion: Callable[[Any, Tensor], Tensor],
    ):
        self.model, self.inputs, self.passes, self.criterion = model, inputs, passes, criterion
        self.hidden = False
        self.latest: Tensor | None = None
        self._goal = FixedGoal()
        self._noise = torch.Generator().manual_seed(inputs.gfi.seed + 1)

    @property
    def has_source(self) -> bool:
        """Whether there is an S."""
        return self.model.source is not None

    def lone_sample(self, batch: Batch) -> AbstractContextManager[None]:
        """Return the context in which a mini-batch of one row passes BatchNorm."""
        return lone_sample(self.model, len(batch))

    def configure(self, inputs: Inputs) -> None:
        """Take another recipe; the noise begins anew where its seed is another one."""
        if inputs.gfi.seed != self.inputs.gfi.seed:
            self._noise.manual_seed(inputs.gfi.seed + 1)
        begins = inputs.fixed_goal and not self.inputs.fixed_goal
        self.inputs = inputs
        if begins:  # maybe in the middle of stage 2
            self.fix_goal()

    def fix_goal(self) -> None:
        """Keep T1 as it is now as the one that gives the goal, where the recipe wants that."""
        if self.inputs.fixed_goal and self.has_source:
            self._goal.renew(self.model)

    def source_features(self, batch: Batch) -> Tensor:
        """Return S's features of a mini-batch: stored, or computed once for all stages."""
        if batch.features is None:
            batch.features = self.model.source_features(batch.images)
        return batch.features

    def reconstruct_source(self, batch: Batch) -> Tensor:
        """Return T1(S(x))."""
        code = self.model.source_code(features=self.source_features(batch))
        return self.passes.decode(self.model.decoder, code)

    @torch.no_grad()
    def goal(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return T1(S(x)), or x without S, with T1's hidden layers where they are read."""
        if not self.has_source:
            return batch.images, []
        features = self.source_features(batch)
        if self.inputs.fixed_goal:
            return self._decoded(self._goal.code(features), self._goal.decoder)
        return self.decode(self.model.source_code(features=features))

    def view(self, x: Tensor) -> Tensor:
        """Return what T2 sees of a mini-batch of training images.

        :raises ValueError: when ``augment=`` changes its shape.
        """
        augment = self.inputs.augment
        if augment is None:
            return x
        view = augment(x)
        if view.shape != x.shape:
            raise ValueError(
                f"augment= changed a mini-batch of shape {tuple(x.shape)} to {tuple(view.shape)}."
            )
        return self.passes.laid_out(view)

    def noisy(self, x: Tensor) -> Tensor:
        """Return images with a share of their pixels set to zero, in all channels."""
        share = self.inputs.input_noise
        if share == 0:
            return x
        keep = torch.rand(x.shape[0], 1, *x.shape[2:], generator=self._noise)
        return x * (keep.to(x.device) >= share)

    def encode(self, x: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Return T2's code, as T1 reads it, and T2's logits."""
        code, self.latest = self.passes.encode(self.model, x, tasks)
        return code, self.latest

    def logits(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Return T2's logits."""
        self.latest = self.passes.logits(self.model, x, tasks)
        return self.latest

    def decode(self, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return T1's image of a code, with its hidden layers where they are read."""
        return self._decoded(code, self.model.decoder)

    def _decoded(self, code: Tensor, decoder: Any) -> tuple[Tensor, list[Tensor]]:
        if self.hidden:
            image, hidden = self.passes.decode_hidden(decoder, code)
            return image, [layer.float() for layer in hidden]
        return self.passes.decode(decoder, code), []

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the noise, for checkpoints."""
        return {"noise": self._noise.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self._noise.set_state(state["noise"])
