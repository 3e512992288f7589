"""The fields of the recipe as attributes of the strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from avalanche_cetl.allocation import GFISettings
from avalanche_cetl.training.variants import Variant

T = TypeVar("T")


class Option(Generic[T]):
    """A field of ``strategy.recipe`` under its own name.

    Setting it gives the strategy another recipe, with the same checks as at construction.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, strategy: Any, owner: type | None = None) -> T:
        if strategy is None:
            return self  # type: ignore[return-value]
        value: T = getattr(strategy.recipe, self.name)
        return value

    def __set__(self, strategy: Any, value: T) -> None:
        strategy.use(replace(strategy.recipe, **{self.name: value}))


class Options:
    """All fields of :class:`~avalanche_cetl.training.recipe.Recipe`, read and set by name."""

    variant = Option[Variant]()
    loss_weights = Option[dict[str, float]]()
    dwa_lambda = Option[float]()
    gfi = Option[GFISettings]()
    alternate = Option[str]()
    stage_epochs = Option[tuple[int, ...] | str]()
    lr_factors = Option[tuple[float, ...]]()
    warmup_epochs = Option[int]()
    input_noise = Option[float]()
    fixed_goal = Option[bool]()
    augment = Option[Callable[[Tensor], Tensor] | None]()
