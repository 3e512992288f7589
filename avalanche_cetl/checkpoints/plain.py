"""Plain data of Python, numpy and torch as JSON and named tensors, and back.

Plain data are None, bool, int, float, str, list, tuple, set, deque, dict, numpy arrays and
scalars, and tensors; nothing else, so that reading makes no object that could do harm.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_cetl.checkpoints.errors import CheckpointError

KIND = "~"  #: marks a JSON object that stands for another type
MANY = 32  #: numbers in a list that are kept as a tensor
DEEPEST = 50  #: nesting


class NotPlainError(TypeError):
    """A value that is not plain data."""


def is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether :class:`Packer` takes a value."""
    if depth > DEEPEST:
        return False
    if value is None or isinstance(value, bool | int | float | str | Tensor | np.generic):
        return not isinstance(value, np.generic) or isinstance(value.item(), bool | int | float)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if type(value) in (list, tuple, set, deque):
        return all(is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(is_plain(part, depth + 1) for pair in value.items() for part in pair)
    return False


def equal(first: Any, *others: Any) -> bool:
    """Return whether plain data are the same in types and values; NaN is the same as NaN."""
    return all(_same(first, other) for other in others)


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and bool(torch.eq(a, b).all() or _bits(a, b))
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b) or (a != a and b != b)


def _bits(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())


class Packer:
    """Takes plain data apart.

    :ivar tensors: the tensors found so far, by the names that stand for them in the JSON.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def pack(self, value: Any) -> Any:
        """Return the data for JSON.

        :raises NotPlainError: for any other type.
        """
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            # JSON's readers refuse long numbers.
            return int(value) if abs(value) < 2**63 else {KIND: "int", "hex": hex(value)}
        if isinstance(value, float):
            return (
                float(value) if math.isfinite(value) else {KIND: "float", "is": str(float(value))}
            )
        if isinstance(value, np.generic):
            return self.pack(value.item())
        if isinstance(value, Tensor):
            return self._tensor(value, "tensor")
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            return {**self._tensor(tensor.reshape(value.shape), "array"), "dtype": str(value.dtype)}
        if type(value) in (list, tuple):
            kind = type(value).__name__
            for number in (int, float):
                if len(value) >= MANY and all(type(item) is number for item in value):
                    found = _numbers(value, number)
                    if found is not None:
                        return {**self._tensor(found, "numbers"), "in": kind}
            items = [self.pack(item) for item in value]
            return items if kind == "list" else {KIND: "tuple", "items": items}
        if type(value) in (set, deque):
            made = {KIND: type(value).__name__, "items": [self.pack(item) for item in value]}
            return made | ({"most": value.maxlen} if isinstance(value, deque) else {})
        if isinstance(value, Mapping):
            if all(type(key) is str for key in value) and KIND not in value:
                return {key: self.pack(item) for key, item in value.items()}
            return {KIND: "dict", "items": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
        raise NotPlainError(type(value).__name__)

    def _tensor(self, value: Tensor, kind: str) -> dict[str, Any]:
        name = str(len(self.tensors))
        # A copy: training goes on, and tensors that share memory have to be told apart.
        self.tensors[name] = value.detach().cpu().clone().contiguous()
        moved = {"moved": True} if kind == "tensor" and value.device.type != "cpu" else {}
        return {KIND: kind, "name": name, **moved}


def _numbers(values: Any, kind: type) -> Tensor | None:
    if kind is float:
        return torch.tensor(values, dtype=torch.float64)
    if any(abs(value) >= 2**63 for value in values):
        return None
    return torch.tensor(values, dtype=torch.int64)


class Unpacker:
    """Puts together what :class:`Packer` took apart.

    :param tensors: by name.
    :param device: for tensors that were on another device than the CPU.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"):
        self.device = device
        self._left = dict(tensors)

    def unpack(self, value: Any, depth: int = 0) -> Any:
        """Return the data.

        :raises CheckpointError: for anything that a Packer would not have made.
        """
        if depth > 2 * DEEPEST:
            raise CheckpointError("the checkpoint's data are nested too deeply.")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self.unpack(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            raise CheckpointError(f"the checkpoint holds a {type(value).__name__}.")
        if KIND not in value:
            return {key: self.unpack(item, depth + 1) for key, item in value.items()}
        try:
            return self._kind(value, depth + 1)
        except (KeyError, ValueError, TypeError, AttributeError) as why:
            raise CheckpointError(
                f"the checkpoint's data are not in order ({type(why).__name__})."
            ) from why

    def _once(self, value: dict[str, Any]) -> Tensor:
        """A tensor; a second use of it would let a small file fill the memory."""
        return self._left.pop(value["name"])

    def _kind(self, value: dict[str, Any], depth: int) -> Any:
        kind = value[KIND]
        if kind == "tensor":
            tensor = self._once(value)
            return tensor.to(self.device, copy=True) if value.get("moved") else tensor.clone()
        if kind == "array":
            return self._once(value).numpy().astype(np.dtype(_array(value["dtype"])))
        if kind == "numbers":
            tensor = self._once(value)
            # Eight bytes each: lists of them stay within a few times the file's size.
            if tensor.dim() != 1 or tensor.dtype not in (torch.int64, torch.float64):
                raise ValueError
            numbers = tensor.tolist()
            return tuple(numbers) if value.get("in") == "tuple" else numbers
        if kind == "int":
            return int(value["hex"][:4096], 16)
        if kind == "float":
            if value["is"] not in ("nan", "inf", "-inf"):
                raise ValueError
            return float(value["is"])
        if kind == "dict":
            pairs = [[self.unpack(part, depth) for part in pair] for pair in value["items"]]
            return {key: item for key, item in pairs}
        items = [self.unpack(item, depth) for item in value["items"]]
        if kind == "tuple":
            return tuple(items)
        if kind == "set":
            return _set(items)
        if kind == "deque":
            return deque(items, maxlen=value["most"])
        raise ValueError


def _set(items: list[Any]) -> set[Any]:
    """Return a set that is gone through in the order of the items, where that can be had.

    The order of a set of numbers depends on the order in which they came into it, and training
    may depend on it: Avalanche shares out a buffer over a set of classes.
    """
    made = set(items)
    if list(made) != items and all(type(item) is int for item in items):
        generator = random.Random(0)
        for _ in range(200):
            trial = set(generator.sample(items, len(items)))
            if list(trial) == items:
                return trial
    return made


def _array(name: Any) -> str:
    if name not in {f"{k}{b}" for k, bits in _ARRAYS.items() for b in bits} | {"bool"}:
        raise ValueError
    return name


_ARRAYS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}
