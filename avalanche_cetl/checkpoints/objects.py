"""The state of objects that the program makes itself: plugins, metrics, schedulers.

What changes in training is taken as plain data, and put back into the objects of the new run in
place. A checkpoint therefore makes no object of a class that it names.
"""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Number
from pathlib import PurePath
from typing import Any

import torch
from avalanche.logging import BaseLogger
from avalanche.training.utils import ParamData
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.plain import DEEPEST, is_plain

HOW = "how"
_CONSTANT = (type, torch.device, torch.dtype, PurePath, Enum, io.IOBase, logging.Logger, BaseLogger)


class Objects:
    """Takes states, and puts them back.

    :param known: objects whose state is kept elsewhere: model, optimizer, strategy.
    """

    def __init__(self, known: list[Any]):
        self._seen = {id(thing) for thing in known}

    # ------------------------------------------------------------------ take

    def take(self, value: Any, where: str, depth: int = 0) -> dict[str, Any] | None:
        """Give the state of a value as plain data; None where there is nothing to keep.

        :param where: its name, for messages.
        :raises CheckpointError: when it has state that cannot be kept.
        """
        if is_plain(value):
            return {HOW: "plain", "value": value}
        if isinstance(value, ParamData):
            return {HOW: "param_data", "name": value.name, "data": value.data}
        if id(value) in self._seen or depth > DEEPEST:
            return None
        self._seen.add(id(value))
        if isinstance(value, torch.Generator):
            return {HOW: "generator", "state": value.get_state(), "device": value.device.type}
        if hasattr(value, "state_dict") and not isinstance(value, nn.Module | type):
            return self._own(value, where)
        if isinstance(value, nn.Module):
            self._check_module(value, where)
            return None
        if isinstance(value, dict):
            entries = [[k, self.take(v, f"{where}[{k!r}]", depth + 1)] for k, v in value.items()]
            if not is_plain([key for key, _ in entries]):
                raise _unknown(where, value)
            return {HOW: "entries", "entries": entries}
        if isinstance(value, list | tuple):
            items = [self.take(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
            return {HOW: "items", "items": items}
        if isinstance(value, _CONSTANT) or (is_dataclass(value) and _frozen(value)):
            return None
        if hasattr(value, "__dict__") and not hasattr(value, "__getitem__"):
            if callable(value) and not vars(value):
                return None
            if type(value).__module__ in ("builtins", "functools", "types", "_weakref"):
                return None
            if callable(value) and hasattr(value, "__code__"):
                return None
            return self._object(value, where, depth)
        if callable(value):
            return None
        raise _unknown(where, value)

    def _own(self, value: Any, where: str) -> dict[str, Any]:
        state = value.state_dict()
        if not is_plain(state):
            raise CheckpointError(
                f"{where}.state_dict() holds more than plain data and tensors, which a checkpoint "
                "does not keep."
            )
        return {HOW: "own", "state": state}

    def _check_module(self, value: nn.Module, where: str) -> None:
        if any(p.requires_grad for p in value.parameters()):
            raise CheckpointError(
                f"{where} is a network that can learn, and a new {where.split('.')[0]} may not "
                "have it: give the plugin state_dict() and load_state_dict(state)."
            )

    def _object(self, value: Any, where: str, depth: int) -> dict[str, Any]:
        attributes = {}
        for name, part in vars(value).items():
            taken = self.take(part, f"{where}.{name}", depth + 1)
            if taken is not None:
                attributes[name] = taken
        return {HOW: "object", "type": type(value).__qualname__, "attributes": attributes}

    # ------------------------------------------------------------------ put

    def put(self, current: Any, taken: Any, where: str) -> Any:
        """Put a state back; give the value, which is ``current`` itself where it was changed.

        :raises CheckpointError: when the state is another thing's.
        """
        if taken is None:
            return current
        if not isinstance(taken, dict):
            raise CheckpointError(f"the checkpoint holds nothing that {where} can take.")
        how = taken.get(HOW)
        if how == "plain":
            return _replaced(current, taken["value"], where)
        if how == "param_data":
            return ParamData(str(taken["name"]), init_tensor=taken["data"])
        if how == "generator" and isinstance(current, torch.Generator):
            if taken["device"] == current.device.type:
                current.set_state(taken["state"].cpu())
            return current
        if how == "own" and hasattr(current, "load_state_dict"):
            if isinstance(current, LRScheduler) and set(taken["state"]) - set(current.state_dict()):
                raise CheckpointError(f"{where} has other fields than in the checkpoint.")
            current.load_state_dict(taken["state"])
            return current
        if how == "entries" and isinstance(current, dict):
            return self._put_entries(current, taken["entries"], where)
        if how == "items" and isinstance(current, list | tuple):
            if len(current) != len(taken["items"]):
                raise CheckpointError(
                    f"{where} has {len(current)} entries, in the checkpoint {len(taken['items'])}."
                )
            parts = [
                self.put(mine, its, f"{where}[{i}]")
                for i, (mine, its) in enumerate(zip(current, taken["items"], strict=True))
            ]
            if isinstance(current, list):
                current[:] = parts
                return current
            return current if all(map(_same, current, parts)) else tuple(parts)
        if how == "object" and taken.get("type") == type(current).__qualname__:
            return self._put_object(current, taken["attributes"], where)
        kind = taken.get("type", how)
        raise CheckpointError(
            f"{where} is a {type(current).__name__}, in the checkpoint a {str(kind)[:60]}: make "
            "the strategy with the arguments and plugins of the run that is to go on."
        )

    def _put_entries(self, current: dict[Any, Any], entries: Any, where: str) -> dict[Any, Any]:
        wanted = dict(entries)
        for key in [key for key in current if key not in wanted]:
            del current[key]
        for key, taken in wanted.items():
            name = f"{where}[{key!r}]"
            if key in current or getattr(current, "default_factory", None) is not None:
                value = current[key]
            elif isinstance(taken, dict) and taken.get(HOW) in ("plain", "param_data"):
                value = None
            elif isinstance(taken, dict) and taken.get(HOW) == "entries":
                value = {}
            else:
                raise CheckpointError(f"{name} is not there, and cannot be made from a checkpoint.")
            current[key] = self.put(value, taken, name)
        return current

    def _put_object(self, current: Any, attributes: Mapping[str, Any], where: str) -> Any:
        own = vars(current)
        for name, taken in attributes.items():
            if name not in own and (not name.isidentifier() or hasattr(type(current), name)):
                raise CheckpointError(f"{where} has no attribute {name[:60]!r}.")
            value = self.put(own.get(name), taken, f"{where}.{name}")
            if value is not own.get(name):
                setattr(current, name, value)
        return current


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
        isinstance(current, Number) and isinstance(value, Number)
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
    return isinstance(value, str | Number | dict | list | set | deque)


def _unknown(where: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{where} is a {type(value).__name__}, which a checkpoint does not keep. If it changes in "
        "training, give the plugin state_dict() and load_state_dict(state); if not, name the "
        "plugin's class in ignore=."
    )
