"""The state of objects that the program makes itself (plugins, metrics, schedulers), put back.

What was taken by :mod:`~avalanche_cetl.checkpoints.taking` goes into the objects of the new run in
place. A checkpoint therefore makes no object of a class that it names.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.utils import ParamData
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.networks import copy_with
from avalanche_cetl.checkpoints.plain import is_plain
from avalanche_cetl.checkpoints.rows import rows_from
from avalanche_cetl.checkpoints.stock import make_again, new_part
from avalanche_cetl.checkpoints.taking import HOW, ITSELF, Live

#: What can be made where a new object has nothing yet.
_MADE = ("plain", "param_data", "entries", "items", "rows", "network", "same")
_REPLACED = (AvalancheDataset, nn.Module, ParamData)
_NUMERIC = (Number, np.generic, np.ndarray, torch.Tensor)  # one may become another


class Putter:
    """Puts the states of objects back.

    :param network: the strategy's, of which plugins may keep copies.
    :param experiences: of the benchmark, for what cannot be put back without; None: not given.
    """

    def __init__(self, network: nn.Module, experiences: Sequence[Any] | None = None):
        self._network, self._experiences = network, experiences
        self._put: dict[int, Any] = {}  # what was put back, by the numbers of the states

    def put(self, current: Any, taken: Any, where: str, owner: Any = None) -> Any:
        """Put a state back; return the value, which is ``current`` itself where it was changed.

        :param current: value that is there now.
        :param taken: state, as :mod:`~avalanche_cetl.checkpoints.taking` returns it.
        :param where: its name, for messages.
        :param owner: the object that has the value.
        :raises CheckpointError: when the state is another thing's.
        """
        if taken is None:
            return current
        if isinstance(taken, Live):
            return taken.value
        if not isinstance(taken, dict):
            raise CheckpointError(f"the checkpoint holds nothing that {where} can take.")
        if isinstance(taken.get(ITSELF), Live):
            current = taken[ITSELF].value
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
            if hasattr(current, "load_state_dict"):  # a class that had none when it was kept
                current.load_state_dict(_attributes_of(taken))
                return current
            return self._put_object(current, taken["attributes"], where)
        kind = taken.get("type", how)
        raise CheckpointError(
            f"{where} is a {type(current).__name__}, in the checkpoint a {str(kind)[:60]}: make "
            "the strategy with the arguments and plugins of the run that is to go on."
        )

    def _new(self, taken: Any, where: str, owner: Any) -> Any:
        """What stands in a place that a new object does not have yet, before its state is put."""
        if isinstance(taken, Live) or (isinstance(taken, dict) and ITSELF in taken):
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


def _attributes_of(taken: Mapping[str, Any]) -> Any:
    """What was kept of an object attribute by attribute, as values and dicts by name."""
    how = taken[HOW]
    if how == "object":
        return {name: _attributes_of(one) for name, one in taken["attributes"].items()}
    if how == "entries":
        return {key: _attributes_of(one) for key, one in taken["entries"]}
    if how == "items":
        return [_attributes_of(one) for one in taken["items"]]
    return taken["value"] if how == "plain" else taken["state"]


def _may_have(kind: type, name: str) -> bool:
    """Whether objects of a class may get an attribute: no method, property or inner attribute."""
    of_class = inspect.getattr_static(kind, name, None)
    inner = name.startswith("__") or not name.isidentifier()
    return not (inner or callable(of_class) or hasattr(of_class, "__get__"))


def _same(a: Any, b: Any) -> bool:
    return a is b


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
