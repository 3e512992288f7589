"""What no penalty on weights can do, and how to tell that a training asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from avalanche.training.templates.problem_type import SupervisedProblem
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

#: Attributes of Avalanche's plugins and strategies that keep or generate old images.
_MEMORIES = ("storage_policy", "mem_size", "patterns_per_experience", "replay_size")

NEW_CLASSES = (
    "this experience brings classes that its head has not had before, and old ones are absent: "
    "cross entropy over all classes lowers the logits of the old ones, which no penalty on weights "
    "keeps from being lost. Train with the loss over the new classes alone (MaskedCrossEntropy("
    'mask="new") of avalanche.training.losses, as criterion and as plugin), replay some old images '
    "(ReplayPlugin), or keep a closed-form head on a frozen network (StreamingRidge, or "
    "Avalanche's StreamingLDA)."
)
BATCH_NORM = (
    "BatchNorm is in training mode while old tasks are held: its running statistics follow the new "
    "images, and what old tasks need of them is lost, which no penalty on weights prevents. Freeze "
    "it, by eval() on every BatchNorm layer before each epoch after the first experience, or use "
    "GroupNorm or LayerNorm."
)


def new_classes_are_lost(
    strategy: Any, seen: Mapping[int, Iterable[int]], coming: Iterable[tuple[int, int]]
) -> bool:
    """Return whether a plain loss over all classes of a shared head trains on new ones alone.

    :param strategy: of the training.
    :param seen: the classes that have come before, by head.
    :param coming: the head and the class of all that come now.
    """
    if getattr(type(strategy), "criterion", None) is not SupervisedProblem.criterion:
        return False  # a loss of the strategy's own
    if type(vars(strategy).get("_criterion")) is not nn.CrossEntropyLoss:
        return False
    if any(hasattr(one, name) for one in (strategy, *strategy.plugins) for name in _MEMORIES):
        return False
    now: dict[int, set[int]] = {}
    for head, label in coming:
        now.setdefault(head, set()).add(label)
    old = {head: set(seen.get(head, ())) for head in now}
    return any(old[head] - own and own - old[head] for head, own in now.items() if old[head])


def batch_norm_runs(model: nn.Module) -> bool:
    """Return whether a BatchNorm of a network that keeps running statistics changes them."""
    return any(
        module.training and module.running_mean is not None
        for module in model.modules()
        if isinstance(module, _BatchNorm)
    )
