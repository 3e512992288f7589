"""The rules for Avalanche's own plugins, buffers and strategies.

Most of them are kept like any object (:mod:`~avalanche_cetl.checkpoints.taking`). Here stand
those that need more: objects that a new plugin does not have yet, loaders that are made again,
and plugins whose state cannot be kept, with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.training import storage_policy
from avalanche.training.plugins import (
    AGEMPlugin,
    BiCPlugin,
    CoPEPlugin,
    CWRStarPlugin,
    GenerativeReplayPlugin,
    MIRPlugin,
    RARPlugin,
)
from avalanche.training.plugins.generative_replay import TrainGeneratorAfterExpPlugin
from avalanche.training.storage_policy import (
    BalancedExemplarsBuffer,
    ParametricBuffer,
    ReservoirSamplingBuffer,
)

from avalanche_cetl.checkpoints.errors import CheckpointError

_NEVER: dict[type, str] = {
    BiCPlugin: "it makes a layer of its own while it trains",
    CoPEPlugin: "it changes the network and the loss when training begins",
    CWRStarPlugin: "it keeps weights outside of the network's state_dict()",
    GenerativeReplayPlugin: "it holds a strategy of its own",
    MIRPlugin: "it holds a data loader that is in the middle of its data",
    RARPlugin: "it holds a data loader that is in the middle of its data",
    TrainGeneratorAfterExpPlugin: "it holds a strategy of its own",
}
_BETWEEN_EXPERIENCES: dict[type, str] = {
    AGEMPlugin: "within an experience its loader is in the middle of its data",
}
#: Attributes that follow from the others.
_MADE_AGAIN = {AGEMPlugin: ("buffer_dataloader", "buffer_dliter", "reference_gradients")}
#: Attributes of every strategy; they are made anew, or kept under names of their own.
_STRATEGY = frozenset(
    ("_criterion", "_distributed_check", "_eval_streams", "_experiences", "_stop_training",
     "adapted_dataset", "clock", "current_eval_stream", "dataloader", "device", "eval_every",
     "eval_mb_size", "evaluator", "experience", "is_training", "loss", "mb_output", "mbatch",
     "model", "optimized_param_id", "optimizer", "plugins", "retain_graph", "train_epochs",
     "train_mb_size")
)  # fmt: skip


def check_kind(plugin: Any, rounds: bool = False) -> None:
    """Raise an error for a plugin whose state cannot be kept, even when it has none yet.

    :param plugin: of a strategy.
    :param rounds: whether checkpoints are made within an experience too.
    :raises CheckpointError: with the reason.
    """
    for kind, why in (_NEVER | (_BETWEEN_EXPERIENCES if rounds else {})).items():
        if isinstance(plugin, kind):
            name = type(plugin).__name__
            remedy = (
                "Save with save_checkpoint() between two experiences, without CheckpointPlugin"
                if kind in _BETWEEN_EXPERIENCES
                else f"Train without checkpoints, or lose its state with ignore=[{name!r}]"
            )
            raise CheckpointError(f"{name} cannot be kept in a checkpoint: {why}. {remedy}.")


def kept_attributes(value: Any, where: str) -> dict[str, Any]:
    """Return the attributes of an object that a checkpoint has to hold.

    :raises CheckpointError: when an attribute that is made again is no longer as made.
    """
    attributes = dict(vars(value))
    for kind, names in _MADE_AGAIN.items():
        if isinstance(value, kind):
            for name in names:
                part = attributes.pop(name)
                if inspect.isgenerator(part) and inspect.getgeneratorstate(part) != "GEN_CREATED":
                    raise CheckpointError(
                        f"{where}.{name} is in the middle of its data, which a checkpoint does "
                        "not keep: save between two experiences."
                    )
    return attributes


def make_again(value: Any) -> None:
    """Make the attributes of an object that follow from the others."""
    if isinstance(value, AGEMPlugin) and value.buffers:
        value.buffer_dataloader = GroupBalancedInfiniteDataLoader(
            value.buffers,
            batch_size=value.sample_size // len(value.buffers),
            num_workers=0,
            pin_memory=False,
            persistent_workers=False,
        )
        value.buffer_dliter = iter(value.buffer_dataloader)


def new_part(owner: Any, taken: Mapping[str, Any]) -> Any:
    """Return an empty group for a replay buffer, which makes its groups in training.

    :param owner: the buffer.
    :param taken: the state of the group.
    :return: None where the owner is no such buffer.
    """
    if isinstance(owner, ParametricBuffer):
        kind = storage_policy._ParametricSingleBuffer
        arguments = {"max_size": 0, "selection_strategy": owner.selection_strategy}
    elif isinstance(owner, BalancedExemplarsBuffer):
        kind, arguments = ReservoirSamplingBuffer, {"max_size": 0}
    else:
        return None
    return kind(**arguments) if taken.get("type") == kind.__qualname__ else None


def own_attributes(strategy: Any) -> dict[str, Any]:
    """Return what a strategy has besides what every strategy of Avalanche has."""
    return {n: value for n, value in vars(strategy).items() if n not in _STRATEGY}
