"""The state in which a network is read: evaluation mode, gradients, a lone row, no autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from avalanche_cetl.common.caches import caches_dropped
from avalanche_cetl.common.state import ModelState, state_kept
from avalanche_cetl.common.tensors import map_tensors


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[ModelState]:
    """Run in eval mode, so that BatchNorm does not mix samples, and leave no trace.

    Every module's mode is restored, and so are buffers and kept values that forward passes write.
    Caches of an earlier evaluation are not read (:mod:`~avalanche_cetl.common.caches`): they have
    no gradient, and may be of other weights.

    :return: the model's state, to be put back between passes too.
    """
    # Flags alone: a train() of a module's own may do more than set them.
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with caches_dropped(model) as eager:
            for module in eager:
                module.training = True  # its own flag: its children stay in eval mode
            with state_kept(model) as state:
                yield state
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def gradients_allowed(model: nn.Module) -> Iterator[None]:
    """Leave ``torch.inference_mode`` for a while, in which there are no gradients at all.

    :raises ValueError: when the model was made in that mode: its tensors can have no gradient;
        and when it has lazy layers that were not run yet.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, p in named if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{lazy[0]!r} has no shape yet ({len(lazy)} such parameters); run the model once on a "
            "batch, so that its lazy layers are made."
        )
    born = [name for name, tensor in named if tensor.is_inference()]
    if born:
        raise ValueError(
            f"{born[0]!r} ({len(born)} tensors in all) was made under torch.inference_mode() and "
            "can have no gradient; make or load the model outside of that mode."
        )
    with torch.inference_mode(False):
        yield


def outside_of_inference(value: Any) -> Any:
    """Return tensors that a backward pass may keep: those of inference mode are copied."""
    return map_tensors(value, lambda t: t.clone() if t.is_inference() else t)


@contextmanager
def lone_sample(rows: int, *models: nn.Module) -> Iterator[None]:
    """Let BatchNorm use its running statistics for a single row, which has none of its own."""
    norms = []
    if rows == 1:
        norms = [
            m
            for model in models
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
        ]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def without_autocast(values: Tensor) -> AbstractContextManager[Any]:
    """Return the context of products of values in their own type, whatever autocast is set to."""
    kind = values.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
