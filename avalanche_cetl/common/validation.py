"""Checks that several rooms make, and an error that several raise."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, SupportsFloat, TypeVar

from avalanche_cetl.common.warning import warn_caller

P = ParamSpec("P")
R = TypeVar("R")


class NonFiniteLossError(ValueError):
    """A training loss became NaN or infinite; the message names loss, stage and epoch."""


def renamed(**ours: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take arguments of its Avalanche counterparts as its own, with a warning.

    None counts as not given. Both names at once are a TypeError.

    :param ours: by the name elsewhere, the name here.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, own in ours.items():
                value = kwargs.pop(name, None)
                if value is None:
                    continue
                given = signature.bind_partial(*args).arguments | kwargs
                if given.get(own) is not None:
                    raise TypeError(f"{name}= is called {own}= here; give {own}= alone.")
                warn_caller(
                    f"{name}= is called {own}= here, and taken as that; write {own}={value!r}.",
                    FutureWarning,
                )
                kwargs[own] = value
            return function(*args, **kwargs)

        # Avalanche refuses names that are not in a strategy's signature before it is called.
        named = list(signature.parameters.values())
        last = len(named) - (named[-1].kind is inspect.Parameter.VAR_KEYWORD)
        named[last:last] = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ours
        ]
        checked.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return checked

    return decorate


def order_of_0_2(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a constructor take positional arguments in their order of 0.2, with a warning.

    Their order has changed, and a number in the first place would silently mean something else.

    :param names: the arguments in their earlier order.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(self: Any, *args: Any, **kwargs: Any) -> R:
            if len(args) > len(names):
                raise TypeError(f"{type(self).__name__} takes its arguments by name.")
            given = dict(zip(names, args, strict=False))
            twice = given.keys() & kwargs.keys()
            if twice:
                raise TypeError(f"{type(self).__name__} got {min(twice)}= twice.")
            if given:
                call = ", ".join(f"{name}={value!r}" for name, value in given.items())
                warn_caller(
                    f"weight comes first in every loss plugin from the next release on, so give "
                    f"the arguments of {type(self).__name__} by name: {call}.",
                    DeprecationWarning,
                )
            return function(self, **given, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ValueError unless the value is one of those that are allowed."""
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"{name}={value!r} is not known. Allowed: {names}.")


def check_weight(name: str, value: float) -> None:
    """Raise ValueError unless the value is a finite number >= 0, TypeError for no number."""
    if isinstance(value, str) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name}={value!r} has to be one number.")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value} has to be finite and >= 0.")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless the value is a finite number > 0."""
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value} has to be finite and > 0.")
