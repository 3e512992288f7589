"""The tensor in a network's output, where that is a dict, a tuple or an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

#: Picks a tensor out of a network's output: an index, a key, an attribute's name, or a callable.
Output = Callable[[Any], Tensor] | int | str


def check_output(output: Any) -> None:
    """Raise TypeError unless it is None, an index, a key or a callable."""
    wrong = isinstance(output, bool) or not isinstance(output, int | str)
    if output is not None and wrong and not callable(output):
        raise TypeError(
            f"output={output!r} has to be an index or a key of the network's output, or a "
            "callable that picks the tensor out of it."
        )


def pick(found: Any, output: Output | None) -> Any:
    """Return the part of a network's output that ``output`` says; None: the whole.

    A text is a key, or else the name of an attribute.

    :raises LookupError, TypeError, AttributeError: where there is no such part.
    """
    if output is None:
        return found
    if callable(output):
        return output(found)
    if isinstance(found, Tensor) and isinstance(output, str):
        if hasattr(found, output):
            return getattr(found, output)
        raise TypeError(f"the output is one tensor, which has no {output!r}")
    try:
        return found[output]
    except (LookupError, TypeError):
        if isinstance(output, str) and hasattr(found, output):
            return getattr(found, output)
        raise


def described(found: Any) -> str:
    """Return what a network's output is, with its parts, for errors: ``a dict with the keys ...``.

    >>> described({"logits": 0})
    "a dict with the keys ['logits']"
    """
    kind = type(found).__name__
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    if isinstance(found, Mapping):
        return f"a {kind} with the keys {list(found)}"
    if isinstance(found, tuple | list):
        parts = ", ".join(type(part).__name__ for part in found)
        return f"a {kind} of {len(found)} ({parts})"
    names = [name for name in getattr(found, "__dict__", ()) if not name.startswith("_")]
    return f"a {kind} with the attributes {names}" if names else f"a {kind}"
