"""What a network's forward pass depends on beside its weights, as far as it can be seen cheaply.

A kept plan is proven again when this has changed: a mask put on a layer, a hook, another setting,
a buffer that was written. It reads no content of tensors, only which they are and how often they
were written into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from inspect import getattr_static
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from avalanche_cetl.common.state import OWN_ATTRIBUTES, version_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, bytes, type(None))
#: Containers inside containers that are looked into.
_DEPTH = 3


def signature(model: nn.Module) -> int:
    """Return a number that changes when anything changes that a forward pass may depend on.

    Left out are the weights that training changes, running statistics of torch's own norms, and
    what a forward pass reads neither from its modules nor from plain global or enclosing names.

    :param model: any module.
    """
    return hash(tuple(_marks(model)))


def _marks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        attributes = vars(module)
        yield id(module), type(module)
        for name in _HOOKS:
            if attributes.get(name):
                yield name, tuple(map(id, attributes[name].values()))
        for name, parameter in module._parameters.items():
            if parameter is not None:
                frozen = not parameter.requires_grad
                yield name, id(parameter), version_of(parameter) if frozen else None
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            for name, buffer in module._buffers.items():
                yield name, _mark(buffer, 0)
        if type(module).__module__.startswith("torch.nn.modules."):
            yield id(attributes.get("forward"))
            continue
        for name, value in attributes.items():
            if name not in OWN_ATTRIBUTES:
                yield name, _mark(value, _DEPTH)
        yield from _surroundings(getattr_static(type(module), "forward", None))


def _surroundings(function: Any) -> Iterator[Any]:
    """Marks of the plain values and tensors that a function reads from outside."""
    if not isinstance(function, FunctionType):
        return
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, (*_PLAIN, Tensor, dict, list)):
            yield name, _mark(value, _DEPTH)
    for cell in function.__closure__ or ():
        yield _mark(cell.cell_contents, _DEPTH)


def _mark(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        return id(value), version_of(value)
    if isinstance(value, _PLAIN):
        return value
    if depth and isinstance(value, dict):
        return tuple((_mark(k, 0), _mark(v, depth - 1)) for k, v in value.items())
    if depth and isinstance(value, list | tuple | deque):
        return tuple(_mark(part, depth - 1) for part in value)
    return id(value)
