"""The state of objects that the program makes itself: plugins, metrics, schedulers.

What changes in training is taken as plain data, and put back into the objects of the new run in
place. A checkpoint therefore makes no object of a class that it names.
"""

from __future__ import annotations

import inspect
import io
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Number
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.logging import BaseLogger
from avalanche.training.utils import ParamData
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.networks import copy_with, may_grow_into, network_state
from avalanche_cetl.checkpoints.plain import DEEPEST, is_plain
from avalanche_cetl.checkpoints.rows import rows_from, rows_state
from avalanche_cetl.checkpoints.stock import kept_attributes, make_again, new_part

HOW = "how"
_ITSELF = "itself"  #: in a state that is put back in the same process: the value that had it
#: What can be made where a new object has nothing yet.
_MADE = ("plain", "param_data", "entries", "items", "rows", "network", "same")
_REPLACED = (AvalancheDataset, nn.Module, ParamData)
_NUMERIC = (Number, np.generic, np.ndarray, torch.Tensor)  # one may become another
_LOADERS = (DataLoader, MultiDatasetDataLoader)
_CONSTANT = (type, torch.device, torch.dtype, PurePath, Enum, io.IOBase, logging.Logger, BaseLogger)


class Live:
    """A value itself, where a state is put back in the same process."""

    def __init__(self, value: Any):
        self.value = value

    def __deepcopy__(self, memory: dict[int, Any]) -> Live:
        return self


class Objects:
    """Takes states, and puts them back.

    :param known: objects whose state is kept elsewhere: model, optimizer, strategy.
    :param network: the strategy's, of which plugins may keep copies.
    :param experiences: of the benchmark, for what cannot be put back without; None: not given.
    :param live: for a state that is put back in the same process, whatever came between: data sets
        and copies of the network are taken as they are, and what is changed in place is known.
    """

    def __init__(
        self,
        known: list[Any],
        network: nn.Module,
        experiences: Sequence[Any] | None = None,
        live: bool = False,
    ):
        self._known = {id(thing) for thing in known}
        self._network, self._experiences, self._live = network, experiences, live
        self._numbers: dict[int, int | None] = {}  # of what was taken; None: not yet to its end
        self._alive: list[Any] = []  # what was taken, so that no id comes twice
        self._put: dict[int, Any] = {}  # what was put back, by these numbers

    # ------------------------------------------------------------------ take

    def take(self, value: Any, where: str, depth: int = 0) -> Any:
        """Return the state of a value as plain data; None where there is nothing to keep.

        What is met a second time is kept once: two places that share an object share it again.

        :param where: its name, for messages.
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
        return {_ITSELF: Live(value)} if self._live else {}

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

    # ------------------------------------------------------------------ put

    def put(self, current: Any, taken: Any, where: str, owner: Any = None) -> Any:
        """Put a state back; return the value, which is ``current`` itself where it was changed.

        :param owner: the object that has the value.
        :raises CheckpointError: when the state is another thing's.
        """
        if taken is None:
            return current
        if isinstance(taken, Live):
            return taken.value
        if not isinstance(taken, dict):
            raise CheckpointError(f"the checkpoint holds nothing that {where} can take.")
        if isinstance(taken.get(_ITSELF), Live):
            current = taken[_ITSELF].value
        if taken.get(HOW) == "same":
            return self._put[taken["number"]]
        value = self._value(current, taken, where, owner)
        if "number" in taken:
            self._put[taken["number"]] = value
        return value

    def _value(self, current: Any, taken: dict[str, Any], where: str, owner: Any) -> Any:
        how = taken.get(HOW)
        if how == "plain":
            return _replaced(current, taken["value"], where)
        if how == "param_data":
            return ParamData(str(taken["name"]), init_tensor=taken["data"])
        if how == "rows" and isinstance(current, AvalancheDataset | None):
            return rows_from(taken, self._experiences, where)
        if how == "network" and isinstance(current, nn.Module | None):
            return copy_with(self._network, taken, self._experiences or (), where)
        if how == "generator" and isinstance(current, torch.Generator):
            if taken["device"] == current.device.type:
                current.set_state(taken["state"].cpu())
            return current
        if how == "own" and hasattr(current, "load_state_dict"):
            if isinstance(current, LRScheduler) and set(taken["state"]) - set(current.state_dict()):
                raise CheckpointError(f"{where} has other fields than in the checkpoint.")
            current.load_state_dict(taken["state"])
            return current
        if how == "constant" and taken.get("type") == type(current).__qualname__:
            return current
        if how == "entries" and isinstance(current, dict | None):
            return self._put_entries({} if current is None else current, taken, where, owner)
        if how == "items" and isinstance(current, list | tuple | None):
            return self._put_items(current, taken, where, owner)
        if how == "object" and taken.get("type") == type(current).__qualname__:
            return self._put_object(current, taken["attributes"], where)
        kind = taken.get("type", how)
        raise CheckpointError(
            f"{where} is a {type(current).__name__}, in the checkpoint a {str(kind)[:60]}: make "
            "the strategy with the arguments and plugins of the run that is to go on."
        )

    def _new(self, taken: Any, where: str, owner: Any) -> Any:
        """What stands in a place that a new object does not have yet, before its state is put."""
        if isinstance(taken, Live) or (isinstance(taken, dict) and _ITSELF in taken):
            return None
        how = taken.get(HOW) if isinstance(taken, dict) else None
        made = new_part(owner, taken) if how == "object" else None
        if made is None and how not in _MADE:
            raise CheckpointError(f"{where} is not there, and cannot be made from a checkpoint.")
        return made

    def _put_items(
        self, current: list[Any] | tuple[Any, ...] | None, taken: Any, where: str, owner: Any
    ) -> Any:
        there, items = list(current or ()), taken["items"]
        surplus = there[len(items) :]
        if len(there) != len(items) and (
            isinstance(current, tuple)
            or not all(is_plain(one) or isinstance(one, _REPLACED) for one in surplus)
        ):
            raise CheckpointError(
                f"{where} has {len(there)} entries, in the checkpoint {len(items)}."
            )
        parts = []
        for i, its in enumerate(items):
            name = f"{where}[{i}]"
            mine = there[i] if i < len(there) else self._new(its, name, owner)
            parts.append(self.put(mine, its, name, owner))
        if isinstance(current, list):
            current[:] = parts
            return current
        if current is None:
            return tuple(parts) if taken.get("tuple") else parts
        return current if all(map(_same, current, parts)) else tuple(parts)

    def _put_entries(
        self, current: dict[Any, Any], state: Any, where: str, owner: Any
    ) -> dict[Any, Any]:
        values = {}
        for key, taken in state["entries"]:
            name = f"{where}[{key!r}]"
            if key in current or getattr(current, "default_factory", None) is not None:
                value = current[key]
            else:
                value = self._new(taken, name, owner)
            values[key] = self.put(value, taken, name, owner)
        current.clear()
        current.update(values)  # in the order of the checkpoint
        return current

    def _put_object(self, current: Any, attributes: Mapping[str, Any], where: str) -> Any:
        own = vars(current)
        for name, taken in attributes.items():
            if name not in own and not _may_have(type(current), name):
                raise CheckpointError(f"{where} has no attribute {name[:60]!r}.")
            value = self.put(own.get(name), taken, f"{where}.{name}", current)
            if value is not own.get(name):
                setattr(current, name, value)
        make_again(current)
        return current


def _may_have(kind: type, name: str) -> bool:
    """Whether objects of a class may get an attribute: no method, property or inner attribute."""
    of_class = inspect.getattr_static(kind, name, None)
    inner = name.startswith("__") or not name.isidentifier()
    return not (inner or callable(of_class) or hasattr(of_class, "__get__"))


def _same(a: Any, b: Any) -> bool:
    return a is b


def _frozen(value: Any) -> bool:
    params = getattr(type(value), "__dataclass_params__", None)
    return bool(getattr(params, "frozen", False)) or not fields(value)


def _replaced(current: Any, value: Any, where: str) -> Any:
    """A plain value in the place of another, in place where that one is a container."""
    if isinstance(current, dict) and isinstance(value, dict):
        current.clear()
        current.update(value)
        return current
    if type(current) in (list, deque) and type(value) is type(current):
        current.clear()
        current.extend(value)
        return current
    if isinstance(current, set) and isinstance(value, set):
        current.clear()
        current.update(value)
        return current
    alike = type(current) is type(value) or (
        isinstance(current, _NUMERIC) and isinstance(value, _NUMERIC)
    )
    if current is None or value is None or alike or is_plain(current):
        if _hard(current) and not alike and value is not None:
            raise CheckpointError(
                f"{where} is a {type(current).__name__}, in the checkpoint a "
                f"{type(value).__name__}."
            )
        return value
    raise CheckpointError(
        f"{where} is a {type(current).__name__}, in the checkpoint a {type(value).__name__}."
    )


def _hard(value: Any) -> bool:
    """Whether a value's type is one that does not change by itself."""
    return isinstance(value, (str, dict, list, set, deque, *_NUMERIC))


def _unknown(where: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint does not keep. If it changes in "
        "training, give the plugin state_dict() and load_state_dict(state); if not, name the "
        "plugin's class in ignore=."
    )
