"""Objects that the program makes itself (plugins, metrics, schedulers): collected, and restored.

An object is kept by the adapter of its class, else by its ``state_dict`` and ``load_state_dict``,
else by its attributes. What was collected goes into the objects of the new run in place: a
checkpoint makes no object of a class that it names.
"""

from __future__ import annotations

import inspect
import io
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
from torch.utils.data import DataLoader

from avalanche_cetl.checkpoints.adapters import adapter_of
from avalanche_cetl.checkpoints.codec import MAX_DEPTH, CheckpointError, is_plain
from avalanche_cetl.checkpoints.datasets import dataset_from, dataset_state
from avalanche_cetl.checkpoints.parts import copy_with, may_grow_into, network_state

_LOADERS = (DataLoader, MultiDatasetDataLoader)
_CONSTANT = (type, torch.device, torch.dtype, PurePath, Enum, io.IOBase, logging.Logger, BaseLogger)
_INNER = ("builtins", "functools", "types", "_weakref")  # modules of Python whose objects stay
_NUMERIC = (Number, np.generic, np.ndarray, torch.Tensor)  # one may become another
_ABSENT = object()


class Collector:
    """Collects the states of objects.

    :param network: the strategy's, of which plugins may keep copies.
    :param known: objects whose state is kept elsewhere.
    """

    def __init__(self, network: nn.Module, known: Sequence[Any] = ()):
        self._network, self._known = network, {id(o) for o in (*network.modules(), *known)}
        self._numbers: dict[int, int | None] = {}  # of what was collected; None: not yet wholly
        self._alive: list[Any] = []  # what was collected, so that no id comes twice

    def collect(self, value: Any, where: str, depth: int = 0) -> Any:
        """Return the state of a value as plain data; None where there is nothing to keep.

        What is met a second time is kept once: two places that share an object share it again.

        :param value: whose state it is.
        :param where: its name, for messages.
        :param depth: how many objects it lies inside of; what lies deeper than a bound is not kept.
        :raises CheckpointError: when it has state that cannot be kept.
        """
        if is_plain(value):
            return {"how": "plain", "value": value}
        if id(value) in self._known or depth > MAX_DEPTH:
            return None
        if id(value) in self._numbers:
            number = self._numbers[id(value)]
            return None if number is None else {"how": "same", "number": number}
        self._numbers[id(value)] = None
        state = self._state(value, where, depth)
        if state is not None:
            self._numbers[id(value)] = state["number"] = len(self._alive)
            self._alive.append(value)
        return state

    def _state(self, value: Any, where: str, depth: int) -> dict[str, Any] | None:
        if isinstance(value, ParamData):
            return {"how": "param_data", "name": value.name, "data": value.data}
        if isinstance(value, AvalancheDataset):
            return {"how": "rows", **dataset_state(value, where)}
        if isinstance(value, torch.Generator):
            return {"how": "generator", "state": value.get_state(), "device": value.device.type}
        if isinstance(value, nn.Module) and adapter_of(type(value)).state_dict is None:
            return self._module(value, where)
        if (functions := _state_functions(value)) is not None:
            state = _called(functions[0], value, "state_dict")
            if not is_plain(state):
                raise CheckpointError(
                    f"{_whose(value, 'state_dict')} of {where} returned {_more(state)}: a "
                    "checkpoint keeps plain data and tensors only."
                )
            return {"how": "own", "state": state}
        if isinstance(value, dict):
            parts = [[k, self.collect(v, f"{where}[{k!r}]", depth + 1)] for k, v in value.items()]
            if not is_plain([key for key, _ in parts]):
                raise _unknown(where, value)
            return {"how": "entries", "entries": parts}
        if isinstance(value, list | tuple):
            parts = [self.collect(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
            return {"how": "items", "items": parts, "tuple": isinstance(value, tuple)}
        if isinstance(value, _CONSTANT) or (is_dataclass(value) and _frozen(value)):
            return None
        if hasattr(value, "__dict__") and not hasattr(value, "__getitem__"):
            if type(value).__module__ in _INNER or (callable(value) and not vars(value)):
                return None
            if not isinstance(value, _LOADERS):
                return self.collect_object(value, where, vars(value), depth)
        if callable(value):
            return None
        raise _unknown(where, value)

    def collect_object(
        self, value: Any, where: str, attributes: Mapping[str, Any], depth: int = 0
    ) -> dict[str, Any]:
        """Return the state of an object's attributes.

        :raises CheckpointError: when one has state that cannot be kept.
        """
        derived = adapter_of(type(value)).derived
        states = {
            name: self.collect(part, f"{where}.{name}", depth + 1)
            for name, part in attributes.items()
            if name not in derived
        }
        return {
            "how": "object",
            "type": type(value).__qualname__,
            "attributes": {name: state for name, state in states.items() if state is not None},
        }

    def _module(self, value: nn.Module, where: str) -> dict[str, Any] | None:
        """Return the state of a copy of the strategy's network, or of one that does not learn."""
        own, its = {id(p) for p in self._network.parameters()}, list(value.parameters())
        if its and all(id(p) in own for p in its):
            return None  # a view of the strategy's network
        if type(value) is type(self._network) and may_grow_into(self._network, value.state_dict()):
            return {"how": "network", **network_state(value)}
        if any(p.requires_grad for p in its):
            raise CheckpointError(
                f"{where} is a network that can learn, and a new {where.split('.')[0]} may not "
                "have it: give the plugin state_dict() and load_state_dict(state), or "
                "register_state_adapter for its class."
            )
        return {"how": "constant", "type": type(value).__qualname__}


def _state_functions(value: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
    """Return the functions that give and take an object's state; None: there are none."""
    adapter = adapter_of(type(value))
    if adapter.state_dict is not None and adapter.load_state_dict is not None:
        give, take = adapter.state_dict, adapter.load_state_dict
        return lambda: give(value), lambda state: take(value, state)
    if isinstance(value, type) or not hasattr(value, "state_dict"):
        return None
    return (value.state_dict, value.load_state_dict) if hasattr(value, "load_state_dict") else None


def _whose(value: Any, function: str) -> str:
    """Return the name of a function of :func:`_state_functions`, for messages."""
    kind = type(value).__name__
    if adapter_of(type(value)).state_dict is not None:
        return f"{function} of {kind} (registered adapter)"
    return f"{kind}.{function}()"


def _called(function: Callable[..., Any], value: Any, name: str, *state: Any) -> Any:
    """Return what a function of :func:`_state_functions` returns.

    :raises CheckpointError: where it fails, with its own error: the file is right.
    """
    try:
        return function(*state)
    except CheckpointError:
        raise
    except Exception as problem:
        raise CheckpointError(
            f"{_whose(value, name)} failed: {type(problem).__name__}: {problem}"
        ) from problem


def _more(state: Any) -> str:
    """Return where a state holds more than plain data, and of which type that is."""
    path = ""
    while not is_plain(state):
        pairs: list[tuple[Any, Any]] = []
        if isinstance(state, dict | list | tuple):
            pairs = list(state.items() if isinstance(state, dict) else enumerate(state))
        inner = next(((key, one) for key, one in pairs if not is_plain(one)), None)
        if inner is None:
            break
        path, state = f"{path}[{inner[0]!r}]", inner[1]
    return f"a {type(state).__name__}" + (f" at {path}" if path else "")


def _frozen(value: Any) -> bool:
    params = getattr(type(value), "__dataclass_params__", None)
    return bool(getattr(params, "frozen", False)) or not fields(value)


def _unknown(where: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint does not keep. If it changes in "
        "training, give the plugin state_dict() and load_state_dict(state), or "
        "register_state_adapter for its class; if not, name the plugin's class in ignore=."
    )


# ------------------------------------------------------------------ restore


class Restorer:
    """Restores the states of objects.

    :param network: the strategy's, of which plugins may keep copies.
    :param experiences: of the benchmark, for what cannot be restored without; None: not given.
    """

    def __init__(self, network: nn.Module, experiences: Sequence[Any] | None = None):
        self._network, self._experiences = network, experiences
        self._restored: dict[int, Any] = {}  # by the numbers of the states

    def restore(self, current: Any, state: Any, where: str) -> Any:
        """Restore a state; return the value, which is ``current`` itself where it was changed.

        :param current: value that is there now.
        :param state: as a :class:`Collector` returned it.
        :param where: its name, for messages.
        :raises CheckpointError: when the state is another thing's.
        """
        if state is None and current is not _ABSENT:
            return current
        if not isinstance(state, dict):
            raise CheckpointError(f"{where} is not there, or the checkpoint holds nothing for it.")
        if state.get("how") == "same":
            return self._restored[state["number"]]
        value = self._value(None if current is _ABSENT else current, state, where)
        if "number" in state:
            self._restored[state["number"]] = value
        return value

    def _value(self, current: Any, state: dict[str, Any], where: str) -> Any:
        how, same_type = state.get("how"), state.get("type") == type(current).__qualname__
        if how == "plain":
            return _replaced(current, state["value"], where)
        if how == "param_data":
            return ParamData(str(state["name"]), init_tensor=state["data"])
        if how == "rows" and isinstance(current, AvalancheDataset | None):
            return dataset_from(state, self._experiences, where)
        if how == "network" and isinstance(current, nn.Module | None):
            return copy_with(self._network, state, self._experiences or (), where)
        if how == "generator" and isinstance(current, torch.Generator):
            if state["device"] == current.device.type:
                current.set_state(state["state"].cpu())
            return current
        if how == "own" and (functions := _state_functions(current)) is not None:
            _called(functions[1], current, "load_state_dict", state["state"])
            return current
        if how == "constant" and same_type:
            return current
        if how == "entries" and isinstance(current, dict | None):
            return self._entries({} if current is None else current, state["entries"], where)
        if how == "items" and isinstance(current, list | tuple | None):
            return self._items(current, state, where)
        if how == "object" and same_type:
            if (functions := _state_functions(current)) is not None:  # there were none in 0.2
                _called(functions[1], current, "load_state_dict", _attributes_of(state))
                return current
            return self._object(current, state["attributes"], where)
        raise _other(where, current, str(state.get("type", how))[:60])

    def _entries(self, current: dict[Any, Any], entries: list[Any], where: str) -> dict[Any, Any]:
        values = {}
        for key, state in entries:
            makes = getattr(current, "default_factory", None) is not None
            there = current[key] if key in current or makes else _ABSENT
            values[key] = self.restore(there, state, f"{where}[{key!r}]")
        current.clear()
        current.update(values)  # in the order of the checkpoint
        return current

    def _items(self, current: Any, state: dict[str, Any], where: str) -> Any:
        there, items = list(current or ()), state["items"]
        surplus = there[len(items) :]
        replaced = (AvalancheDataset, nn.Module, ParamData)
        if len(there) != len(items) and (
            isinstance(current, tuple)
            or not all(is_plain(one) or isinstance(one, replaced) for one in surplus)
        ):
            raise CheckpointError(
                f"{where} has {len(there)} entries, in the checkpoint {len(items)}."
            )
        there += [_ABSENT] * (len(items) - len(there))
        parts = [
            self.restore(mine, its, f"{where}[{i}]")
            for i, (mine, its) in enumerate(zip(there, items, strict=False))
        ]
        if isinstance(current, list):
            current[:] = parts
            return current
        if current is None:
            return tuple(parts) if state.get("tuple") else parts
        return current if all(a is b for a, b in zip(current, parts, strict=True)) else tuple(parts)

    def _object(self, current: Any, attributes: Mapping[str, Any], where: str) -> Any:
        own, adapter = vars(current), adapter_of(type(current))
        if adapter.prepare is not None:
            adapter.prepare(current, attributes)
        for name, state in attributes.items():
            if name not in own and not _may_have(type(current), name):
                raise CheckpointError(f"{where} has no attribute {name[:60]!r}.")
            value = self.restore(own.get(name), state, f"{where}.{name}")
            if value is not own.get(name):
                setattr(current, name, value)
        if adapter.finish is not None:
            adapter.finish(current)
        return current


def _attributes_of(state: Mapping[str, Any]) -> Any:
    """Return what was kept of an object attribute by attribute, as values and dicts by name."""
    how = state["how"]
    if how == "object":
        return {name: _attributes_of(one) for name, one in state["attributes"].items()}
    if how == "entries":
        return {key: _attributes_of(one) for key, one in state["entries"]}
    if how == "items":
        return [_attributes_of(one) for one in state["items"]]
    return state["value"] if how == "plain" else state["state"]


def _may_have(kind: type, name: str) -> bool:
    """Return whether objects of a class may get an attribute: no method, no inner attribute."""
    of_class = inspect.getattr_static(kind, name, None)
    inner = name.startswith("__") or not name.isidentifier()
    return not (inner or callable(of_class) or hasattr(of_class, "__get__"))


def _replaced(current: Any, value: Any, where: str) -> Any:
    """Return a plain value in the place of another; a container is filled anew, and stays."""
    same = type(current) is type(value)
    if same and isinstance(current, list | deque):
        current.clear()
        current.extend(value)
        return current
    if any(isinstance(current, kind) and isinstance(value, kind) for kind in (dict, set)):
        current.clear()
        current.update(value)
        return current
    alike = same or (isinstance(current, _NUMERIC) and isinstance(value, _NUMERIC))
    if not (alike or current is None or value is None or isinstance(current, tuple)):
        raise _other(where, current, type(value).__name__)
    return value


def _other(where: str, current: Any, kind: str) -> CheckpointError:
    mine = "not there" if current is None else f"a {type(current).__name__}"
    return CheckpointError(
        f"{where} is {mine}, in the checkpoint a {kind}: make the strategy with the arguments and "
        "plugins of the run that is to go on."
    )
