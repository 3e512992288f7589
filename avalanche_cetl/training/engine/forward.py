"""The networks' forward functions in training: precision, memory layout, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from avalanche_cetl.models.coupled import CoupledModel

Function = TypeVar("Function", bound=Callable[..., Any])


class ForwardFunctions:
    """T1's and T2's forward functions in training, compiled where that is asked for.

    The compiled functions stand beside the modules, which keep their names and stay as they are
    for evaluation, importance passes and checkpoints.

    :param compiled: False, True, or the name of a backend of ``torch.compile``.
    :param channels_last: whether images are laid out channels last.
    """

    def __init__(self, compiled: bool | str = False, channels_last: bool = False):
        self.compiled, self.channels_last = compiled, channels_last
        self._made: dict[tuple[str, int], tuple[Any, Callable[..., Any]]] = {}

    def laid_out(self, x: Tensor) -> Tensor:
        """Return images in the memory layout of the networks."""
        if self.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def encode(self, model: CoupledModel, x: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Return T2's code, as T1 reads it, and T2's logits, by task where it has such heads."""
        return self._of("encode", model, model.target_code)(x, tasks)

    def logits(self, model: CoupledModel, x: Tensor, tasks: Tensor) -> Tensor:
        """Return T2's logits."""
        labels = (tasks,) if model.target.heads_by_task else ()
        return self._of("logits", model, model.forward)(x, *labels)

    def decode(self, decoder: nn.Module, code: Tensor) -> Tensor:
        """Return T1's image."""
        # Called as a module T1 runs its hooks; compiled it is a function beside the module.
        function = self._of("decode", decoder, decoder.forward) if self.compiled else decoder
        image: Tensor = function(code)
        return image

    def decode_hidden(self, decoder: Any, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return T1's image and hidden layers."""
        outputs: tuple[Tensor, list[Tensor]] = self._of("hidden", decoder, decoder.forward_hidden)(
            code
        )
        return outputs

    def _of(self, name: str, owner: Any, function: Function) -> Function:
        if not self.compiled:
            return function
        key = name, id(owner)
        if key not in self._made:
            backend = self.compiled if isinstance(self.compiled, str) else "inductor"
            self._made[key] = owner, torch.compile(function, backend=backend)
        return self._made[key][1]  # type: ignore[return-value]
