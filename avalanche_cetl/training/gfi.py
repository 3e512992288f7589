"""GFI: Generalized Fisher Information as a strategy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ParamSpec, get_type_hints

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.described import Described
from avalanche_cetl.common.validation import renamed
from avalanche_cetl.plugins.gfi import GFIPlugin

P = ParamSpec("P")
_TYPES = get_type_hints(GFIPlugin.__init__)
#: The arguments of the plugin, by name.
_PLUGIN = {
    name: one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_TYPES[name])
    for name, one in inspect.signature(GFIPlugin).parameters.items()
    if name != "ewc_lambda"
}


def _with_the_plugin_s_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """Name the plugin's arguments in the signature: Avalanche refuses what is not in it."""
    signature = inspect.signature(init)
    *own, others = signature.parameters.values()
    named = signature.replace(parameters=[*own, *_PLUGIN.values(), others])
    init.__signature__ = named  # type: ignore[attr-defined]
    return init


class GFI(SupervisedTemplate, Described):
    """Generalized Fisher Information as a strategy: :class:`GFIPlugin` with Naive training.

    Its arguments are those of :class:`GFIPlugin`, by keyword; what is None is as it is there by
    default.

    :param gfi: the same as a dict by name, or as :class:`GFISettings`, which has all of its fields.
    :param criterion: ``(outputs, labels) -> scalar``; default: cross entropy, for a categorical
        likelihood only.

    The other arguments are those of every Avalanche strategy.

    :raises TypeError: when ``gfi`` is neither.
    :raises ValueError: as in :class:`GFIPlugin`, for ``refresh_every``, for settings that are given
        twice, and for another likelihood without a criterion.
    """

    @renamed(ewc_lambda="dwa_lambda")
    @_with_the_plugin_s_arguments
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        gfi: dict[str, Any] | GFISettings | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        **kwargs: Any,
    ):
        given = {name: kwargs.pop(name) for name in _PLUGIN if name in kwargs}
        own = {name: value for name, value in given.items() if value is not None}
        plugin = GFIPlugin(**_joined(own, gfi))
        if criterion is None and plugin.likelihood != "categorical":
            raise ValueError(
                f"likelihood={plugin.likelihood!r} needs criterion=, the loss that trains: "
                "the default is cross entropy of class logits."
            )
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[*(plugins or ()), plugin],
            evaluator=evaluator,
            eval_every=eval_every,
            **kwargs,
        )


def _joined(own: dict[str, Any], gfi: dict[str, Any] | GFISettings | None) -> dict[str, Any]:
    """Return keyword arguments of the plugin: those given by themselves, and those of ``gfi``."""
    further = _arguments(gfi)
    twice = [name for name in own if name in further]
    if twice:
        raise ValueError(
            f"{twice[0]}={own[twice[0]]!r} is given and gfi={gfi!r} has {twice[0]} too: give each "
            f"setting once, without gfi= all as keywords ({', '.join(twice)} here)."
        )
    return own | further


def _arguments(gfi: dict[str, Any] | GFISettings | None) -> dict[str, Any]:
    """Keyword arguments of the plugin."""
    if isinstance(gfi, GFISettings):
        given = {field.name: getattr(gfi, field.name) for field in fields(gfi)}
        if given.pop("refresh_every") != GFISettings.refresh_every:
            raise ValueError(
                f"gfi=GFISettings(refresh_every={gfi.refresh_every}): GFI measures once an "
                "experience and has no refresh_every; CETLStrategy has."
            )
        return given
    if gfi is not None and not isinstance(gfi, dict):
        raise TypeError(
            f"gfi has to be GFISettings(...) or a dict of GFIPlugin's keyword arguments, got "
            f"{type(gfi).__name__}."
        )
    return gfi or {}
