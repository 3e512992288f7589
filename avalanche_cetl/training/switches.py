"""How the passes are computed: precision, memory layout, compiled, in how many pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_cetl.models.coupled import CoupledModel

PRECISIONS = ("float32", "bfloat16")


class Part(NamedTuple):
    """A mini-batch's place among those that one step is made of.

    :ivar weight: its rows over the rows of all of them.
    """

    first: bool = True
    last: bool = True
    weight: float = 1.0


WHOLE = Part()


def parts(loader: Iterable[Any], passes: int, together: int) -> Iterator[tuple[Any, Part]]:
    """Give a loader's batches, so many passes in a row, ``together`` of them to a step.

    What is left at the end of a pass makes a step of its own.
    """
    for _ in range(passes):
        if together == 1:
            for batch in loader:
                yield batch, WHOLE
            continue
        batches = iter(loader)
        while group := list(islice(batches, together)):
            rows = [len(batch[0]) for batch in group]
            for i, batch in enumerate(group):
                yield batch, Part(i == 0, i == len(group) - 1, rows[i] / sum(rows))


def casting(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Give the context of the forward passes."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def layout(batch: list[Any], channels_last: bool) -> list[Any]:
    """Give a mini-batch with its images in the layout of the network."""
    if channels_last and batch[0].dim() == 4:
        batch[0] = batch[0].contiguous(memory_format=torch.channels_last)
    return batch


class Passes:
    """The networks' passes in training, compiled where that is asked for.

    The compiled functions stand beside the modules, which keep their names and stay as they are
    for evaluation, importance passes and checkpoints.

    :param compiled: False, True, or the name of a backend of ``torch.compile``.
    """

    def __init__(self, compiled: bool | str = False):
        self.compiled = compiled
        self._made: dict[tuple[str, int], tuple[Any, Callable[..., Any]]] = {}

    def encode(self, model: CoupledModel, x: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Give T2's code, as T1 reads it, and T2's logits, by task where it has such heads."""
        labels = (tasks,) if model.target.heads_by_task else ()
        return self._of("encode", model, model.target_code)(x, *labels)

    def logits(self, model: CoupledModel, x: Tensor, tasks: Tensor) -> Tensor:
        """Give T2's logits."""
        labels = (tasks,) if model.target.heads_by_task else ()
        return self._of("logits", model, model.forward)(x, *labels)

    def decode(self, decoder: Any, code: Tensor) -> Tensor:
        """Give T1's image."""
        return self._of("decode", decoder, decoder.forward)(code)

    def decode_hidden(self, decoder: Any, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Give T1's image and hidden layers."""
        return self._of("hidden", decoder, decoder.forward_hidden)(code)

    def _of(self, name: str, owner: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.compiled:
            return owner if name == "decode" else function
        key = name, id(owner)
        if key not in self._made:
            backend = self.compiled if isinstance(self.compiled, str) else "inductor"
            self._made[key] = owner, torch.compile(function, backend=backend)
        return self._made[key][1]


def check_switches(precision: Any, channels_last: Any, accumulate: Any, compiled: Any) -> None:
    """Raise ValueError for a value out of range."""
    if precision not in PRECISIONS:
        allowed = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision={precision!r} is not known. Allowed: {allowed}.")
    if not isinstance(channels_last, bool):
        raise ValueError(f"channels_last={channels_last!r} has to be True or False.")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(
            f"accumulate={accumulate!r} has to be >= 1: the number of mini-batches to a step."
        )
    if isinstance(compiled, str):
        known = torch.compiler.list_backends(exclude_tags=())
        if compiled not in known:
            raise ValueError(f"compile={compiled!r} is no backend here. Allowed: {known}.")
    elif not isinstance(compiled, bool):
        raise ValueError(f"compile={compiled!r} has to be True, False or a backend's name.")
