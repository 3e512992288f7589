"""What routes depend on: the key that they are kept by, and when they are verified again.

The key (:func:`cache_key`) is which modules, parameters and inputs there are. Routes are verified
again where the :func:`signature` has changed, which is what a forward pass depends on beside its
weights, as far as it can be seen cheaply: a mask put on a layer, a hook, another setting, a buffer
that was written. It reads no content of tensors, only which they are and how often they were
written into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from inspect import getattr_static
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl.common.state import OWN_ATTRIBUTES, version_of
from avalanche_cetl.information.gradients.registry import registrations
from avalanche_cetl.information.likelihood import BoundLoss

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (bool, int, float, str, bytes, type(None))
_VALUES = (*_PLAIN, Tensor, dict, list, tuple, set)
#: Containers inside containers that are looked into: a tensor in a list in a dictionary of an
#: object that a layer holds is just seen. A list may hold itself, so there has to be an end.
_DEPTH = 3


def cache_key(
    model: nn.Module,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor],
    losses: int,
    wrapped: bool,
) -> Hashable:
    """Return what a network has to have in common with another one to take the same routes.

    :param model: whose per-sample gradients are wanted.
    :param inputs: tensors ``(N, ...)``; their shapes without N and types count.
    :param params: keyed as ``model.named_parameters()``.
    :param losses: how many there are.
    :param wrapped: whether the model is a wrapper around the network, made anew for every
        measurement: then its choices (names of outputs, tasks of heads) count in its place.
    """
    choices = [
        (name, value)
        for name, value in vars(model).items()
        if wrapped and isinstance(value, tuple) and all(isinstance(v, str | int) for v in value)
    ]
    return (
        type(model),
        tuple(sorted(choices)),
        tuple((name, id(module), type(module)) for name, module in model.named_modules() if name),
        tuple((name, id(p), p.shape, p.dtype, p.device) for name, p in params.items()),
        tuple((part.shape[1:], part.dtype) for part in inputs),
        torch.is_autocast_enabled(inputs[0].device.type),
        losses,
        registrations(),
    )


def signature(model: nn.Module, losses: Sequence[BoundLoss] = ()) -> int:
    """Return a number that changes when anything changes that a forward pass may depend on.

    Left out are the weights that training changes, running statistics of torch's own norms, and
    what a forward pass reads neither from its modules and their classes nor from plain global or
    enclosing names.

    :param model: any module.
    :param losses: that will be measured; two with the same code are the same.
    """
    codes = tuple(id(getattr(loss.function, "__code__", loss.function)) for loss in losses)
    return hash((codes, *_marks(model)))


def weights_version(model: nn.Module) -> int:
    """Return a number that changes when an optimiser, or anything else, writes a weight."""
    return hash(tuple((id(p), version_of(p)) for p in model.parameters()))


def _marks(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        attributes = vars(module)
        yield id(module), type(module)
        for name in _HOOKS:
            if attributes.get(name):
                yield name, tuple(attributes[name])  # numbers that are not given twice
        for name, parameter in module._parameters.items():
            if parameter is not None:
                frozen = not parameter.requires_grad
                hooks = tuple(parameter._backward_hooks or ())
                yield name, id(parameter), version_of(parameter) if frozen else None, hooks
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            for name, buffer in module._buffers.items():
                yield name, _mark(buffer, 0)
        if type(module).__module__.startswith("torch.nn.modules."):
            yield id(attributes.get("forward"))
            continue
        for name, value in attributes.items():
            if name not in OWN_ATTRIBUTES:
                yield name, _mark(value, _DEPTH)
        for kind in type(module).__mro__:
            if kind is nn.Module:
                break
            yield from ((n, _mark(v, 1)) for n, v in vars(kind).items() if isinstance(v, _VALUES))
        yield from _surroundings(getattr_static(type(module), "forward", None))


def _surroundings(function: Any) -> Iterator[Any]:
    """Iterate over marks of the plain values and tensors that a function reads from outside."""
    if not isinstance(function, FunctionType):
        return
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType):
            yield name, id(value.__code__)
        elif isinstance(value, _VALUES):
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
    if isinstance(value, set | frozenset):
        return hash(frozenset(_mark(part, 0) for part in value))
    attributes = getattr(value, "__dict__", None)
    opaque = isinstance(value, type | nn.Module | FunctionType)
    if depth and isinstance(attributes, dict) and not opaque:
        return id(value), _mark(attributes, depth - 1)  # settings in an object
    return id(value)
