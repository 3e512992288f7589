"""Checks of arguments that several rooms make."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")


R = TypeVar("R")


def renamed(**ours: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function refuse arguments of its Avalanche counterparts, and name its own.

    :param ours: by the name elsewhere, the name here.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, own in ours.items():
                if kwargs.pop(name, None) is not None:
                    raise TypeError(f"{name}= is called {own}= here; give {own}=.")
            return function(*args, **kwargs)

        # Avalanche refuses names that are not in a strategy's signature before it is called.
        signature = inspect.signature(function)
        named = list(signature.parameters.values())
        last = len(named) - (named[-1].kind is inspect.Parameter.VAR_KEYWORD)
        named[last:last] = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ours
        ]
        checked.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return checked

    return decorate


def check_weight(name: str, value: float) -> None:
    """Raise ValueError unless the value is a finite number >= 0."""
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value} has to be finite and >= 0.")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless the value is a finite number > 0."""
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value} has to be finite and > 0.")
