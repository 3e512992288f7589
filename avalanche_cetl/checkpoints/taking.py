"""The state of objects that the program makes itself (plugins, metrics, schedulers), taken.

What changes in training is taken as plain data. :mod:`~avalanche_cetl.checkpoints.putting` puts it
back into the objects of the new run.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.logging import BaseLogger
from avalanche.training.utils import ParamData
from torch import nn
from torch.utils.data import DataLoader

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.networks import may_grow_into, network_state
from avalanche_cetl.checkpoints.plain import DEEPEST, is_plain
from avalanche_cetl.checkpoints.rows import rows_state
from avalanche_cetl.checkpoints.stock import kept_attributes

HOW = "how"  #: in a state: by which rule it was taken
ITSELF = "itself"  #: in a state that is put back in the same process: the value that had it
_LOADERS = (DataLoader, MultiDatasetDataLoader)
_CONSTANT = (type, torch.device, torch.dtype, PurePath, Enum, io.IOBase, logging.Logger, BaseLogger)


class Live:
    """A value itself, where a state is put back in the same process."""

    def __init__(self, value: Any):
        self.value = value

    def __deepcopy__(self, memory: dict[int, Any]) -> Live:
        return self


class Taker:
    """Takes the states of objects.

    :param known: objects whose state is kept elsewhere: model, optimizer, strategy.
    :param network: the strategy's, of which plugins may keep copies.
    :param live: for a state that is put back in the same process, whatever came between: data sets
        and copies of the network are taken as they are, and what is changed in place is marked.
    """

    def __init__(self, known: list[Any], network: nn.Module, live: bool = False):
        self._known = {id(thing) for thing in known}
        self._network, self._live = network, live
        self._numbers: dict[int, int | None] = {}  # of what was taken; None: not yet to its end
        self._alive: list[Any] = []  # what was taken, so that no id comes twice

    def take(self, value: Any, where: str, depth: int = 0) -> Any:
        """Return the state of a value as plain data; None where there is nothing to keep.

        What is met a second time is kept once: two places that share an object share it again.

        :param value: whose state it is.
        :param where: its name, for messages.
        :param depth: how many objects it lies inside of; what lies deeper than a bound is not kept.
        :raises CheckpointError: when it has state that cannot be kept.
        """
        if is_plain(value):
            return {HOW: "plain", "value": value, **self._itself(value)}
        if id(value) in self._known or depth > DEEPEST:
            return None
        if id(value) in self._numbers:
            number = self._numbers[id(value)]
            return None if number is None else {HOW: "same", "number": number}
        self._numbers[id(value)] = None
        state = self._state(value, where, depth)
        if isinstance(state, dict):
            state.update(self._itself(value))
            self._numbers[id(value)] = state["number"] = len(self._alive)
            self._alive.append(value)
        return state

    def _itself(self, value: Any) -> dict[str, Any]:
        return {ITSELF: Live(value)} if self._live else {}

    def _state(self, value: Any, where: str, depth: int) -> Any:
        if isinstance(value, ParamData):
            return {HOW: "param_data", "name": value.name, "data": value.data}
        if isinstance(value, AvalancheDataset):
            return Live(value) if self._live else {HOW: "rows", **rows_state(value, where)}
        if isinstance(value, nn.Module):
            return self._module(value, where)
        if isinstance(value, torch.Generator):
            return {HOW: "generator", "state": value.get_state(), "device": value.device.type}
        if hasattr(value, "state_dict") and not isinstance(value, type):
            return self._own(value, where)
        if isinstance(value, dict):
            entries = [[k, self.take(v, f"{where}[{k!r}]", depth + 1)] for k, v in value.items()]
            if not is_plain([key for key, _ in entries]):
                raise _unknown(where, value)
            return {HOW: "entries", "entries": entries}
        if isinstance(value, list | tuple):
            items = [self.take(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
            return {HOW: "items", "items": items, "tuple": isinstance(value, tuple)}
        if isinstance(value, _CONSTANT) or (is_dataclass(value) and _frozen(value)):
            return None
        if hasattr(value, "__dict__") and not hasattr(value, "__getitem__"):
            if callable(value) and not vars(value):
                return None
            if type(value).__module__ in ("builtins", "functools", "types", "_weakref"):
                return None
            if (callable(value) and hasattr(value, "__code__")) or isinstance(value, type):
                return None
            if not isinstance(value, _LOADERS):
                return self.take_object(value, where, kept_attributes(value, where), depth)
        if callable(value):
            return None
        raise _unknown(where, value)

    def take_object(
        self, value: Any, where: str, attributes: Mapping[str, Any], depth: int = 0
    ) -> dict[str, Any]:
        """Return the state of an object's attributes.

        :raises CheckpointError: when one has state that cannot be kept.
        """
        taken = {n: self.take(v, f"{where}.{n}", depth + 1) for n, v in attributes.items()}
        return {
            HOW: "object",
            "type": type(value).__qualname__,
            "attributes": {name: state for name, state in taken.items() if state is not None},
        }

    def _own(self, value: Any, where: str) -> dict[str, Any]:
        state = value.state_dict()
        if not is_plain(state):
            raise CheckpointError(
                f"{where}.state_dict() holds more than plain data and tensors, which a checkpoint "
                "does not keep."
            )
        return {HOW: "own", "state": state}

    def _module(self, value: nn.Module, where: str) -> Any:
        """The state of a network: a copy of the strategy's, or one that does not learn."""
        its = {id(p) for p in self._network.parameters()}
        if (
            its
            and all(id(p) in its for p in value.parameters())
            and next(value.parameters(), None) is not None
        ):
            return None  # a view of the strategy's network
        if type(value) is type(self._network) and may_grow_into(self._network, value.state_dict()):
            return Live(value) if self._live else {HOW: "network", **network_state(value)}
        if any(p.requires_grad for p in value.parameters()):
            raise CheckpointError(
                f"{where} is a network that can learn, and a new {where.split('.')[0]} may not "
                "have it: give the plugin state_dict() and load_state_dict(state)."
            )
        return {HOW: "constant", "type": type(value).__qualname__}


def _frozen(value: Any) -> bool:
    params = getattr(type(value), "__dataclass_params__", None)
    return bool(getattr(params, "frozen", False)) or not fields(value)


def _unknown(where: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint does not keep. If it changes in "
        "training, give the plugin state_dict() and load_state_dict(state); if not, name the "
        "plugin's class in ignore=."
    )
