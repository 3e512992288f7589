"""What a forward pass, or a load that fails, may change in objects, and how it is put back."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
_CODE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


class ModelState:
    """A network's buffers and kept values, as they are now.

    Kept values are a module's plain attributes: a counter, a running average that is no buffer,
    the hidden state of a recurrent layer; in lists, dicts, sets and arrays too, not in objects of
    other classes. Weights are put back where a forward pass writes them (an Embedding with
    ``max_norm``, a teacher that follows), in networks of up to 16 million; modes are not.

    :param model: any module.
    """

    def __init__(self, model: nn.Module):
        modules = list(model.modules())
        self._buffers = [
            (module._buffers, name, buffer, version_of(buffer), buffer.detach().clone())
            for module in modules
            for name, buffer in list(module._buffers.items())
            if buffer is not None
        ]
        self._attributes = [(vars(module), own_attributes(module)) for module in modules]
        weights = list(model.parameters())
        small = sum(p.numel() for p in weights) <= _MOST_WEIGHTS
        values: list[Any] = weights if small else []
        for _, attributes in self._attributes:
            values += [part for value in attributes.values() for part in _within(value)]
        self._contents = [content for value in values if (content := _content(value))]

    def put_back(self) -> None:
        """Restore buffers, attributes and weights; remove what was added."""
        for position, (owner, name, buffer, version, value) in enumerate(self._buffers):
            written = version_of(buffer) != version
            if written or (name in _UNCOUNTED and not torch.equal(buffer, value)):
                _write(buffer, value)
                self._buffers[position] = (owner, name, buffer, version_of(buffer), value)
            if owner.get(name) is not buffer:
                owner[name] = buffer
        for content in self._contents:
            content()
        for attributes, kept in self._attributes:
            for name in [n for n in attributes if n not in kept and n not in OWN_ATTRIBUTES]:
                del attributes[name]
            attributes.update(kept)


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


class Snapshot:
    """All that an object holds now, directly or through others, to be put back in place.

    These are attributes of objects, entries of lists, dicts, sets and deques, contents of tensors
    and arrays, states of generators, and which parameters can learn. Code is left alone.

    :param root: the object.
    :param constant: classes whose objects are left alone, with all that they hold.
    """

    def __init__(self, root: Any, constant: tuple[type, ...] = ()):
        self._contents: list[Callable[[], Any]] = []
        seen: dict[int, Any] = {}  # with the objects, so that no id comes twice
        todo = [root]
        while todo:
            value = todo.pop()
            if id(value) in seen or isinstance(value, (*_CODE, *constant)):
                continue
            seen[id(value)] = value
            content = _content(value)
            if content is not None:
                self._contents.append(content)
                todo += _parts(value)
            if isinstance(value, nn.Parameter):
                self._contents.append(partial(value.requires_grad_, value.requires_grad))
            elif isinstance(value, torch.Generator):
                self._contents.append(partial(value.set_state, value.get_state()))
            elif hasattr(value, "__dict__"):
                todo.append(vars(value))

    def put_back(self) -> None:
        """Restore what all objects held."""
        for content in self._contents:
            content()


def version_of(tensor: Tensor) -> int | None:
    """Count of writes into a tensor; None where torch does not count them."""
    return None if tensor.is_inference() else tensor._version


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are its own, not those of every module."""
    return {name: value for name, value in vars(module).items() if name not in OWN_ATTRIBUTES}


def _parts(value: Any) -> Any:
    """Return what a container holds."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | deque | set) else ()


def _within(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """Yield a value and what lies in it, down to a depth."""
    yield value
    if depth:
        for part in _parts(value):
            yield from _within(part, depth - 1)


def _content(value: Any) -> Callable[[], Any] | None:
    """Return what restores a value's present content; None where it is not changed in place."""
    if isinstance(value, Tensor):
        return None if is_lazy(value) else _tensor_content(value)
    if isinstance(value, np.ndarray) and value.flags.writeable:
        array = value.copy()
        return lambda: np.copyto(value, array)
    if not isinstance(value, list | deque | dict | set):
        return None
    kept = list(value.items() if isinstance(value, dict) else value)

    def fill() -> None:
        value.clear()
        if isinstance(value, dict):
            for key, part in kept:  # update() of a Counter would add
                value[key] = part
        elif isinstance(value, set):
            value.update(kept)
        else:
            value.extend(kept)

    return fill


def _tensor_content(tensor: Tensor) -> Callable[[], None]:
    version, content = version_of(tensor), tensor.detach().clone()

    def write() -> None:
        nonlocal version
        if version_of(tensor) != version:
            _write(tensor, content)
            version = version_of(tensor)

    return write


def _write(tensor: Tensor, content: Tensor) -> None:
    # Not through autograd: the tensor may be a view, or need a gradient.
    tensor.detach().copy_(content)
