"""Inputs for networks that other people wrote."""

from __future__ import annotations

from typing import TypeVar

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
        return type(value)(own_copy(part) for part in value)
    return value
