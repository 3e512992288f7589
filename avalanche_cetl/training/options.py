"""A strategy's options as attributes, and how they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor

from avalanche_cetl.allocation import Allocation, GFISettings
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.checks import check_taken_names
from avalanche_cetl.training.data import TrainingData
from avalanche_cetl.training.engine import Engine
from avalanche_cetl.training.meters import LossMeters
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.optimizers import StageOptimizers
from avalanche_cetl.training.recipe import COMPUTED, Recipe
from avalanche_cetl.training.stages import LabelledRows, TrainingStage
from avalanche_cetl.training.variants import Variant

T = TypeVar("T")


class Option(Generic[T]):
    """A field of ``strategy.recipe`` under its own name; assigning it calls ``configure``."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, strategy: Options | None, owner: type | None = None) -> T:
        if strategy is None:
            return self  # type: ignore[return-value]
        value: Any = getattr(strategy.recipe, self.name)
        # A part of it cannot be assigned: nothing would be checked.
        shown: Any = MappingProxyType(value) if isinstance(value, dict) else value
        found: T = shown
        return found

    def __set__(self, strategy: Options, value: T) -> None:
        strategy.configure(**{self.name: value})


class Fixed:
    """What is given when a strategy is made, and cannot be assigned later."""

    def __init__(self, read: Callable[[Options], Any]):
        self.read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, strategy: Options | None, owner: type | None = None) -> Any:
        return self if strategy is None else self.read(strategy)

    def __set__(self, strategy: Options, value: Any) -> None:
        raise AttributeError(
            f"{self.name} cannot be assigned: other things were made by it. Give {self.name}= when "
            "you make the strategy; single options change by configure(...)."
        )


class EvalEvery:
    """Rounds between two evaluations, which Avalanche keeps in a plugin of its own."""

    def __get__(self, strategy: Options | None, owner: type | None = None) -> Any:
        if strategy is None:
            return self
        if "eval_every" not in vars(strategy):
            raise AttributeError("eval_every")
        return vars(strategy)["eval_every"]

    def __set__(self, strategy: Options, value: int) -> None:
        if not isinstance(value, Integral):
            raise TypeError(f"eval_every={value!r} has to be a whole number.")
        vars(strategy)["eval_every"] = value
        for plugin in strategy.plugins:
            if isinstance(plugin, PeriodicEval):
                plugin.eval_every, plugin.do_initial = value, value > -1


def _peval_mode(strategy: Options) -> str:
    result: str = next(p.peval_mode for p in strategy.plugins if isinstance(p, PeriodicEval))
    return result


class Criterion:
    """The criterion: read, Avalanche's method; assigned, the loss that trains from then on."""

    def __get__(self, strategy: Options | None, owner: type | None = None) -> Any:
        return self if strategy is None else SupervisedTemplate.criterion.__get__(strategy)

    def __set__(self, strategy: Options, value: Callable[[Tensor, Tensor], Tensor]) -> None:
        strategy._criterion = LabelledRows.of(value)


class Options:
    """All options as attributes: each is in force when it is assigned, or the assignment fails."""

    _recipe: Recipe
    engine: Engine
    networks: Networks
    allocation: Allocation
    optimizers: StageOptimizers
    meters: LossMeters
    running: TrainingStage
    plugins: list[Any]
    _criterion: Callable[[Any, Tensor], Tensor]
    training_data: TrainingData | None
    model: CoupledModel

    variant = Option[Variant]()
    loss_weights = Option[Mapping[str, float]]()
    dwa_lambda = Option[float]()
    gfi = Option[GFISettings]()
    alternate = Option[str]()
    stage_epochs = Option[tuple[int, ...] | str]()
    lr_factors = Option[tuple[float, ...]]()
    warmup_epochs = Option[int]()
    input_noise = Option[float]()
    fixed_goal = Option[bool]()
    augment = Option[Callable[[Tensor], Tensor] | None]()
    precision = Option[str]()
    channels_last = Option[bool]()
    accumulate = Option[int]()
    compile = Option[bool | str]()
    eval_every = EvalEvery()
    criterion = Criterion()
    recipe = Fixed(lambda strategy: strategy._recipe)
    preset = Fixed(lambda strategy: strategy._recipe.preset)
    peval_mode = Fixed(_peval_mode)

    def _follow_variant(self) -> None:
        self.running = self.recipe.variant.stages[-1]
        self.optimizers.follow(self.recipe.variant, self.model)
        self.networks.modules = self.optimizers.modules
        self.meters.announce(self.recipe.variant.recorded)

    def configure(self, **options: Any) -> None:
        """Change options, as if they had been given when the strategy was made.

        Assigning an option does the same. What was measured and learnt stays. Within ``train()``
        a change counts from the next step, ``alternate`` and ``stage_epochs`` from the next round.

        :param options: any of ``variant`` to ``compile`` (see the class), by name. What was not
            given follows anew: other values may change with it.
        :raises TypeError: for other names.
        :raises ValueError: as at construction; for ``variant`` and ``precision`` to ``compile``
            while an experience is in training; for ``variant`` where the preset's plugins depend
            on it.
        """
        before, recipe = self._recipe, self._recipe.changed(options)
        check_change(before, recipe, self.model, self.training_data is not None)
        check_taken_names(self.plugins, recipe.variant.name, recipe.variant.recorded)
        self._recipe = recipe
        self.networks.configure(recipe)
        self.allocation.configure(recipe.variant.importance, recipe.gfi, recipe.dwa_lambda)
        if any(getattr(recipe, name) != getattr(before, name) for name in COMPUTED):
            self.engine = recipe.engine()
            self.networks.functions = self.engine.functions
        if _other_variant(before, recipe):
            self._follow_variant()


def check_change(old: Recipe, new: Recipe, model: CoupledModel, training: bool) -> None:
    """Raise ValueError where options cannot change from one set to the other.

    :param old: the options in force.
    :param new: those that are asked for.
    :param model: the strategy's network.
    :param training: whether an experience is in training.
    """
    new.check_warmup(model)
    if new.values.plugins != old.values.plugins:
        raise ValueError(
            f"variant={new.given['variant']!r}: with preset={new.preset!r} the variant decides "
            "which plugins the strategy has. Give variant= when you make the strategy."
        )
    fixed = [name for name in COMPUTED if getattr(new, name) != getattr(old, name)]
    fixed += ["variant"] if _other_variant(old, new) else []
    if training and fixed:
        raise ValueError(
            f"{fixed[0]} cannot change while an experience is in training: change it between two "
            "calls of train()."
        )


def _other_variant(old: Recipe, new: Recipe) -> bool:
    """Whether options have another variant, and not a copy of the same or its name."""
    given = old.given["variant"], new.given["variant"]
    return given[0] != given[1] and old.variant != new.variant
