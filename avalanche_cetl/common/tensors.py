"""Inputs for networks that other people wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Input = TypeVar("Input")


def own_copy(value: Input) -> Input:
    """Return a copy of a tensor (or of every tensor in a tuple) that a network may write into.

    A forward pass that begins with ``x.sub_(0.5)`` or ``nn.ReLU(inplace=True)`` changes the
    tensor that it is given. Whoever needs the images afterwards hands such a network a copy. A
    copy costs a small part of any forward pass.

    :param value: a tensor, a tuple or list of values, or anything else, which comes back as it is.
    :return: the same structure; tensors are clones with memory of their own.
    """
    if isinstance(value, Tensor):
        return value.clone()  # type: ignore[return-value]
    if isinstance(value, tuple | list):
        parts = [own_copy(part) for part in value]
        make = getattr(value, "_make", type(value))  # of a named tuple
        return make(parts)
    return value


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a tensor, or to every tensor of a nested tuple; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return function(value)
    if not isinstance(value, tuple | list):
        raise TypeError(
            f"targets have to be tensors, or tuples of them; got {type(value).__name__}."
        )
    return tuple(map_tensors(part, function) for part in value)
