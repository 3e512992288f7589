"""The codec of checkpoints: plain data of Python, numpy and torch as one safetensors file.

Plain data are None, bool, int, float, str, list, tuple, set, deque, dict, numpy arrays and
scalars, and tensors; nothing else, so that reading makes no object that could do harm. Tensors
are tensors of the file, all else is JSON in its metadata, beside the format, its version and a
SHA-256 over every byte of the file (its own 64 digits read as zeros): a change of any bit is found.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from avalanche_cetl.common.files import WriteProblems, write_atomically
from avalanche_cetl.common.warning import warn_caller

FORMAT = "avalanche-cetl checkpoint"
VERSION = 2
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 16 * 2**20  #: of the header, which holds the JSON
MAX_DEPTH = 50  #: of nesting

_KIND = "~"  # marks a JSON object that stands for another type
_LONG = 32  # numbers in a list that is kept as a tensor
_ARRAY_TYPES = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
     "float32", "float64")
)  # fmt: skip
_NUMBERS = ((1, torch.int64), (1, torch.float64))  # dimensions and types of such tensors
_METADATA = ("format", "version", "state", "sha256")
_NUMBERED = re.compile(r"checkpoint-(\d+)" + re.escape(SUFFIX))
_DIGEST = b'"sha256":"%s"'
_NO_DIGEST = b"0" * 64


class CheckpointError(RuntimeError):
    """Raised when a checkpoint cannot be written, is damaged, or belongs to something else."""


WRITE_PROBLEMS = WriteProblems(
    CheckpointError,
    full="What was there before is whole; make room, or keep fewer checkpoints.",
)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether :func:`encode` takes a value."""
    if depth > MAX_DEPTH:
        return False
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return True
    if isinstance(value, np.generic):
        return isinstance(value.item(), bool | int | float)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if type(value) in (list, tuple, set, deque):
        return all(is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(is_plain(part, depth + 1) for pair in value.items() for part in pair)
    return False


def equal(a: Any, b: Any) -> bool:
    """Return whether plain data are the same in types and values; NaN is the same as NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b) or (a != a and b != b)


# ------------------------------------------------------------------ values


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return plain data for JSON.

    :param value: the data.
    :param tensors: into which copies of all tensors go, by the names that JSON has for them.
    :raises CheckpointError: for any other type.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):  # JSON's readers refuse long numbers
        return int(value) if abs(value) < 2**63 else {_KIND: "int", "hex": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_KIND: "float", "is": str(float(value))}
    if isinstance(value, np.generic) and is_plain(value):
        return encode(value.item(), tensors)
    if isinstance(value, Tensor):
        moved = {} if value.device.type == "cpu" else {"moved": True}
        return {_KIND: "tensor", "name": _added(value.detach(), tensors), **moved}
    if isinstance(value, np.ndarray) and is_plain(value):
        array = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
        return {_KIND: "array", "name": _added(array, tensors), "dtype": str(value.dtype)}
    if type(value) in (list, tuple) and (numbers := _numbers(value)) is not None:
        kind = type(value).__name__
        return {_KIND: "numbers", "name": _added(numbers, tensors), "in": kind}
    if type(value) in (list, tuple, set, deque):
        items = [encode(item, tensors) for item in value]
        longest = {"most": value.maxlen} if isinstance(value, deque) else {}
        kind = type(value).__name__
        return items if kind == "list" else {_KIND: kind, "items": items, **longest}
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value) and _KIND not in value:
            return {key: encode(item, tensors) for key, item in value.items()}
        pairs = [[encode(part, tensors) for part in pair] for pair in value.items()]
        return {_KIND: "dict", "items": pairs}
    raise CheckpointError(f"a {type(value).__name__} cannot be kept in a checkpoint.")


def _added(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    # A copy: training goes on, and tensors that share memory have to be told apart.
    tensors[str(len(tensors))] = tensor.cpu().clone().contiguous()
    return str(len(tensors) - 1)


def _numbers(values: Any) -> Tensor | None:
    """Return a long list of numbers as a tensor; None for other lists."""
    kinds = set(map(type, values)) if len(values) >= _LONG else set()
    if kinds == {float}:
        return torch.tensor(values, dtype=torch.float64)
    if kinds == {int} and all(abs(value) < 2**63 for value in values):
        return torch.tensor(values, dtype=torch.int64)
    return None


class Decoder:
    """Makes plain data again of what :func:`encode` returned.

    :param tensors: by name.
    :param device: for tensors that were on another device than the CPU.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"):
        self._left, self._device = dict(tensors), device

    def decode(self, value: Any, depth: int = 0) -> Any:
        """Return the data.

        :raises CheckpointError: for anything that :func:`encode` would not have made.
        """
        if depth > 2 * MAX_DEPTH:
            raise CheckpointError("the checkpoint's data are nested too deeply.")
        if isinstance(value, list):
            return [self.decode(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        if _KIND not in value:
            return {key: self.decode(item, depth + 1) for key, item in value.items()}
        try:
            return self._of_kind(value[_KIND], value, depth + 1)
        except (KeyError, ValueError, TypeError, AttributeError) as why:
            raise CheckpointError(
                f"the checkpoint's data are not in order ({type(why).__name__})."
            ) from why

    def _of_kind(self, kind: Any, value: dict[str, Any], depth: int) -> Any:
        if kind in ("tensor", "array", "numbers"):
            # A second use of a tensor would let a small file fill the memory.
            tensor = self._left.pop(value["name"])
            if kind == "tensor":
                return tensor.to(self._device, copy=True) if value.get("moved") else tensor.clone()
            if kind == "array" and value["dtype"] in _ARRAY_TYPES:
                return tensor.numpy().astype(np.dtype(value["dtype"]))
            # Eight bytes each: lists of them stay within a few times the file's size.
            if kind == "numbers" and (tensor.dim(), tensor.dtype) in _NUMBERS:
                return tuple(tensor.tolist()) if value.get("in") == "tuple" else tensor.tolist()
        elif kind == "int":
            return int(value["hex"][:4096], 16)
        elif kind == "float" and value["is"] in ("nan", "inf", "-inf"):
            return float(value["is"])
        elif kind == "dict":
            return {self.decode(k, depth): self.decode(v, depth) for k, v in value["items"]}
        elif kind in ("tuple", "set", "deque"):
            items = [self.decode(item, depth) for item in value["items"]]
            if kind == "deque":
                return deque(items, maxlen=value["most"])
            return tuple(items) if kind == "tuple" else _set(items)
        raise ValueError


def _set(items: list[Any]) -> set[Any]:
    """Return a set that is gone through in the order of the items, where that can be had.

    The order of a set of numbers depends on the order in which they came into it, and training
    may depend on it: Avalanche shares out a buffer over a set of classes.
    """
    made, generator = set(items), random.Random(0)
    if all(type(item) is int for item in items):
        for _ in range(200):
            if list(made) == items:
                break
            made = set(generator.sample(items, len(items)))
    return made


# ------------------------------------------------------------------ the file


def write_checkpoint_file(path: Path, tensors: Mapping[str, Tensor], state: Any) -> None:
    """Write a checkpoint whole, or leave what was there.

    :param path: of the file.
    :param tensors: by name, as :func:`encode` filled them in.
    :param state: data for JSON.
    :raises CheckpointError: when it cannot be written, or the JSON is too large.
    """
    text = json.dumps(state, allow_nan=False)
    values = (FORMAT, str(VERSION), text, _NO_DIGEST.decode())
    metadata = dict(zip(_METADATA, values, strict=True))
    content = bytearray(safetensors.torch.save(dict(tensors), metadata=metadata))
    header = _header_size(content, path)
    if header > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the plain data of the checkpoint fill {header} bytes, more than {MAX_HEADER_BYTES}: "
            "a metric or a plugin keeps too much; give it state_dict() with tensors."
        )
    start = _digest_position(content, header, _NO_DIGEST, path)
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    write_atomically(path, content, WRITE_PROBLEMS)


def read_checkpoint_file(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read a checkpoint, and check it.

    Memory stays below four times the size of the file, and 80 times that of its header, which
    is at most 16 MiB.

    :return: tensors on the CPU, and data as JSON had them.
    :raises CheckpointError: when it is not there, damaged, of another version, or no checkpoint.
    """
    try:
        content = bytearray(path.read_bytes())
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from problem
    header = _header_size(content, path)
    if header > MAX_HEADER_BYTES:
        raise _damaged(path, "its header is too large")
    try:
        metadata = json.loads(content[8:header])["__metadata__"]
        kind, version, text, digest = (metadata[name] for name in _METADATA)
        found = digest.encode("ascii")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as why:
        raise _damaged(path, "its header is no header of a checkpoint") from why
    if kind != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of avalanche-cetl.")
    if version != str(VERSION):
        raise CheckpointError(
            f"{path} has version {str(version)[:20]!r} of the format, and this release reads "
            f"version {VERSION}: load it with the release that wrote it."
        )
    start = _digest_position(content, header, found, path)
    content[start : start + 64] = _NO_DIGEST
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(path, "its checksum does not fit")
    try:
        return safetensors.torch.load(bytes(content)), json.loads(text)
    except (
        SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError,
    ) as why:  # fmt: skip
        raise _damaged(path, f"it cannot be parsed ({type(why).__name__})") from why


def checkpoints_in(folder: Path) -> list[Path]:
    """Return a folder's numbered checkpoints, oldest first."""
    matches = ((_NUMBERED.fullmatch(path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint of a folder that is whole.

    :raises CheckpointError: when there is none.
    """
    found = checkpoints_in(folder)
    for path in reversed(found):
        try:
            read_checkpoint_file(path)
        except CheckpointError as problem:
            warn_caller(f"{problem} An older one is tried.", RuntimeWarning)
        else:
            return path
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}.")
    raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} is whole.")


def _header_size(content: bytearray, path: Path) -> int:
    """Return the bytes of the length field and the header."""
    size = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 8 < size <= len(content):
        raise _damaged(path, "it is cut off, or no checkpoint")
    return size


def _digest_position(content: bytearray, header: int, digest: bytes, path: Path) -> int:
    entry = _DIGEST % digest
    if len(digest) != 64 or content.count(entry, 8, header) != 1:
        raise _damaged(path, "its checksum is not where it belongs")
    return content.index(entry, 8, header) + len(entry) - 65


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {how}. Take an older checkpoint.")
