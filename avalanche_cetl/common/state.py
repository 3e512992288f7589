"""What a forward pass may change in a network, and how it is put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: Attributes that torch itself keeps in every module.
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))
#: Containers inside containers that are looked into; a list may hold itself.
_DEPTH = 3
#: Buffers that torch's batch_norm writes without counting it as a write.
_UNCOUNTED = ("running_mean", "running_var")
#: Weights of a network that are copied with its state: 64 MiB in single precision.
_MOST_WEIGHTS = 2**24


class ModelState:
    """A network's buffers and kept values, as they are now.

    Kept values are a module's plain attributes: a counter, a running average that is no buffer,
    the hidden state of a recurrent layer; in lists, dicts, sets and arrays too, not in objects of
    other classes. Weights are put back where a forward pass writes them (an Embedding with
    ``max_norm``, a teacher that follows), in networks of up to 16 million; modes are not.

    :param model: any module.
    """

    def __init__(self, model: nn.Module):
        self._buffers = [
            (module._buffers, name, buffer, version_of(buffer), buffer.detach().clone())
            for module in model.modules()
            for name, buffer in list(module._buffers.items())
            if buffer is not None
        ]
        weights = list(model.parameters())
        small = sum(p.numel() for p in weights) <= _MOST_WEIGHTS
        self._weights = [_Written(p) for p in weights if small and not is_lazy(p)]
        self._attributes = [(vars(module), _own_attributes(module)) for module in model.modules()]

    def put_back(self) -> None:
        """Restore buffers, attributes and weights; remove what was added."""
        for weight in self._weights:
            weight.value()
        for position, (owner, name, buffer, version, value) in enumerate(self._buffers):
            written = version_of(buffer) != version
            if written or (name in _UNCOUNTED and not torch.equal(buffer, value)):
                _write(buffer, value)
                self._buffers[position] = (owner, name, buffer, version_of(buffer), value)
            if owner.get(name) is not buffer:
                owner[name] = buffer
        for attributes, kept in self._attributes:
            for name in [n for n in attributes if n not in kept and n not in OWN_ATTRIBUTES]:
                del attributes[name]
            for name, snapshot in kept.items():
                attributes[name] = snapshot.value()


@contextmanager
def state_kept(model: nn.Module) -> Iterator[ModelState]:
    """Put back, at the end, what forward passes inside have changed.

    :param model: any module.
    :return: its state, to be put back between passes as well.
    """
    state = ModelState(model)
    try:
        yield state
    finally:
        state.put_back()


def _own_attributes(module: nn.Module) -> dict[str, _Snapshot]:
    own = {name: v for name, v in vars(module).items() if name not in OWN_ATTRIBUTES}
    return {name: _snapshot(value) for name, value in own.items()}


class _Snapshot:
    """A value that is not changed in place, or a container of such values."""

    def __init__(self, original: Any):
        self.original = original

    def value(self) -> Any:
        return self.original


class _Written(_Snapshot):
    """A tensor: the object itself, with the content that it had."""

    def __init__(self, original: Tensor):
        super().__init__(original)
        self.version, self.content = version_of(original), original.detach().clone()

    def value(self) -> Any:
        if version_of(self.original) != self.version:
            _write(self.original, self.content)
            self.version = version_of(self.original)
        return self.original


class _Array(_Snapshot):
    """An array of numpy: the object itself, with the content that it had."""

    def __init__(self, original: np.ndarray):
        super().__init__(original)
        self.content = original.copy()

    def value(self) -> Any:
        self.original[...] = self.content
        return self.original


class _Filled(_Snapshot):
    """A list, a deque, a dict or a set: the object itself, with the entries that it had."""

    def __init__(self, original: Any, depth: int):
        super().__init__(original)
        items = original.items() if isinstance(original, dict) else enumerate(original)
        self.parts = [(key, _snapshot(part, depth - 1)) for key, part in items]

    def value(self) -> Any:
        parts = [(key, part.value()) for key, part in self.parts]
        self.original.clear()
        if isinstance(self.original, dict):
            for key, part in parts:  # update() of a Counter would add
                self.original[key] = part
        elif isinstance(self.original, set):
            self.original.update(part for _, part in parts)
        else:
            self.original.extend(part for _, part in parts)
        return self.original


def _snapshot(value: Any, depth: int = _DEPTH) -> _Snapshot:
    if isinstance(value, Tensor):
        return _Written(value)
    if isinstance(value, np.ndarray) and value.flags.writeable:
        return _Array(value)
    if isinstance(value, list | deque | dict | set) and depth:
        return _Filled(value, depth)
    return _Snapshot(value)


def version_of(tensor: Tensor) -> int | None:
    """Count of writes into a tensor; None where torch does not count them."""
    return None if tensor.is_inference() else tensor._version


def _write(tensor: Tensor, content: Tensor) -> None:
    # Not through autograd: the tensor may be a view, or need a gradient.
    tensor.detach().copy_(content)
