"""The state of a network, and of the copies of it that plugins keep as old models.

A network is never made from the file: the weights go into the strategy's network or into a copy
of it. Heads that grow with the classes (Avalanche's ``IncrementalClassifier`` and
``MultiHeadClassifier``) are brought to the size in the checkpoint first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.models import (
    DynamicModule,
    IncrementalClassifier,
    MultiHeadClassifier,
)
from avalanche.models.utils import avalanche_model_adaptation
from torch import Tensor, nn

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.plain import is_plain

_PARTS = ("_parameters", "_buffers", "_modules")


def network_state(network: nn.Module) -> dict[str, Any]:
    """Return weights and buffers, which are frozen, modes, and attributes of dynamic modules.

    ``"frozen"`` names parameters that cannot learn, ``"training"`` has the mode of every module
    in the order of ``modules()``, and ``"dynamic"`` holds the plain attributes of Avalanche's
    dynamic modules, such as the tasks that a multi-head classifier has seen.
    """
    tensors = dict(network.state_dict())
    return {
        "tensors": tensors,
        "frozen": [
            n for n, p in network.named_parameters() if n in tensors and not p.requires_grad
        ],
        "training": [module.training for module in network.modules()],
        "dynamic": {name: _facts(m) for name, m in _dynamic(network).items()},
    }


def set_network_state(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Put the state of a network back, which has tensors of the same names and shapes.

    Entries other than ``"tensors"`` may be missing: what they would set then stays as it is.
    """
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state["tensors"][name])
    if "frozen" in state:
        for name, parameter in network.named_parameters():
            if name in own:
                parameter.requires_grad_(name not in state["frozen"])
    dynamic = _dynamic(network)
    for name, facts in state.get("dynamic", {}).items():
        known = _facts(dynamic[name])
        if facts.keys() - known.keys():
            raise CheckpointError(f"{name[:80]} has other attributes than in the checkpoint.")
        vars(dynamic[name]).update(facts)
    modules = list(network.modules())
    for module, training in zip(modules, state.get("training", []), strict=False):
        module.training = bool(training)


def differing(network: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    """Return what differs in name, shape or type between a network and saved tensors."""
    own = network.state_dict()
    return [
        *(f"{name} is not in the checkpoint" for name in sorted(own.keys() - saved.keys())),
        *(f"{name[:80]} is not in the model" for name in sorted(saved.keys() - own.keys())),
        *(
            f"{name} is {tuple(own[name].shape)}, in the checkpoint {tuple(saved[name].shape)}"
            for name in sorted(own.keys() & saved.keys())
            if own[name].shape != saved[name].shape or own[name].dtype != saved[name].dtype
        ),
    ]


def copy_with(
    network: nn.Module, state: Mapping[str, Any], experiences: Sequence[Any], where: str
) -> nn.Module:
    """Return a copy of a network with another state.

    :param network: that is copied.
    :param state: of the copy, a ``state_dict()``.
    :param experiences: see :func:`grow`.
    :param where: the name of the copy, for messages.
    :raises CheckpointError: when the state is another network's.
    """
    made = copy.deepcopy(network)
    grow(made, state["tensors"], experiences)
    other = differing(made, state["tensors"])
    if other:
        raise CheckpointError(
            f"{where} is a copy of another network than the strategy's ({other[0]})."
        )
    set_network_state(made, state)
    return made


# ------------------------------------------------------------------ growth


def grow(network: nn.Module, saved: Mapping[str, Tensor], experiences: Sequence[Any] = ()) -> None:
    """Bring modules that grow in training to the sizes of saved tensors.

    Avalanche's classifiers need the tensors only. Other dynamic modules adapt to one experience
    after the other, until the network has what was saved.

    :param network: that is changed in place.
    :param saved: tensors of the state, by name.
    :param experiences: those of the run, in order.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()  # adaptation in training mode would note classes as seen
    for name, module in _dynamic(network).items():
        _grow_classifier(module, f"{name}." if name else "", saved)
    network.train()
    for experience in experiences:
        if not differing(network, saved):
            break
        avalanche_model_adaptation(network, experience)
    for module, training in modes:
        module.training = training


def _grow_classifier(module: nn.Module, prefix: str, saved: Mapping[str, Tensor]) -> None:
    if isinstance(module, MultiHeadClassifier):
        for key, tensor in saved.items():
            task = key.removeprefix(f"{prefix}classifiers.").removesuffix(".classifier.weight")
            if task.isdecimal() and key == f"{prefix}classifiers.{task}.classifier.weight":
                _adapt(module, module.in_features, tensor, [int(task)])
    elif isinstance(module, IncrementalClassifier) and module._auto_adapt:
        tensor = saved.get(f"{prefix}classifier.weight", torch.empty(0))
        _adapt(module, module.classifier.in_features, tensor, [0])


def may_grow_into(network: nn.Module, saved: Mapping[str, Tensor]) -> bool:
    """Return whether all that differs lies in modules that may grow in training."""
    own = network.state_dict()
    growing = list(_dynamic(network))
    other = {*(own.keys() ^ saved.keys())} | {
        name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape
    }
    return all(any(not g or name.startswith(f"{g}.") for g in growing) for name in other)


class Shape:
    """The modules and tensors that a network has now, to go back to after :func:`grow`."""

    def __init__(self, network: nn.Module):
        self._parts = [
            (module, {name: copy.copy(vars(module)[name]) for name in _PARTS} | _facts(module))
            for module in network.modules()
        ]

    def go_back(self) -> None:
        """Put the modules and tensors back."""
        for module, parts in self._parts:
            vars(module).update(parts)


def _adapt(module: DynamicModule, width: int, weight: Tensor, tasks: list[int]) -> None:
    """Adapt a classifier to classes up to the rows of a weight."""
    if weight.dim() == 2 and len(weight) and weight.shape[1] == width:
        module.adaptation(
            SimpleNamespace(classes_in_this_experience=[len(weight) - 1], task_labels=tasks)
        )


def _dynamic(network: nn.Module) -> dict[str, DynamicModule]:
    return {n: m for n, m in network.named_modules() if isinstance(m, DynamicModule)}


def _facts(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module that are its own, not those of every module."""
    return {
        name: value
        for name, value in vars(module).items()
        if name != "training" and name not in _EVERY_MODULE and is_plain(value)
    }


_EVERY_MODULE = frozenset(vars(nn.Module()))
