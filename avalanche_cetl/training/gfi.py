"""GFI: Generalized Fisher Information as a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.allocation.settings import Basis, GFISettings
from avalanche_cetl.common.picks import Output
from avalanche_cetl.common.validation import renamed
from avalanche_cetl.information.estimators import Estimator
from avalanche_cetl.information.generalized import Quantile
from avalanche_cetl.information.likelihood import LossName
from avalanche_cetl.information.outputs import Likelihood
from avalanche_cetl.plugins.gfi import GFIPlugin, Mode, Penalty

#: Settings of CETL's rounds, which a plugin that measures once an experience has not.
_OF_ROUNDS = ("normalize_samples", "refresh_every")


class GFI(SupervisedTemplate):
    """Generalized Fisher Information as a strategy: :class:`GFIPlugin` with Naive training.

    :param dwa_lambda: see :class:`GFIPlugin`, as all arguments from ``mode`` to ``seed``; what is
        None is as it is there by default.
    :param gfi: the same as a dict by name, or as :class:`GFISettings`, which has all of its fields.
    :param criterion: ``(outputs, labels) -> scalar``; default: cross entropy, for a categorical
        likelihood only.

    The other arguments are those of every Avalanche strategy.

    :raises TypeError: when ``gfi`` is neither.
    :raises ValueError: as in :class:`GFIPlugin`, for settings that it does not have, for those that
        are given twice, and for another likelihood without a criterion.
    """

    @renamed(ewc_lambda="dwa_lambda")
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        dwa_lambda: float,
        mode: Mode | None = None,
        decay_factor: float | None = None,
        keep_importance_data: bool | None = None,
        penalty: Penalty | None = None,
        basis: Basis | None = None,
        rank: int | None = None,
        threshold: float | Quantile | None = None,
        probability: float | None = None,
        estimator: Estimator | None = None,
        fisher: LossName | None = None,
        likelihood: Likelihood | None = None,
        output: Output | None = None,
        samples: int | None = None,
        normalize: bool | None = None,
        seed: int | None = None,
        gfi: dict[str, Any] | GFISettings | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        **base_kwargs: Any,
    ):
        given = {
            "dwa_lambda": dwa_lambda,
            "mode": mode,
            "decay_factor": decay_factor,
            "keep_importance_data": keep_importance_data,
            "penalty": penalty,
            "basis": basis,
            "rank": rank,
            "threshold": threshold,
            "probability": probability,
            "estimator": estimator,
            "fisher": fisher,
            "likelihood": likelihood,
            "output": output,
            "samples": samples,
            "normalize": normalize,
            "seed": seed,
        }
        own = {name: value for name, value in given.items() if value is not None}
        plugin = GFIPlugin(**_joined(own, gfi))
        if criterion is None and plugin.readout.likelihood != "categorical":
            raise ValueError(
                f"likelihood={plugin.readout.likelihood!r} needs criterion=, the loss that trains: "
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
            **base_kwargs,
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
        for name in _OF_ROUNDS:
            if given.pop(name) != getattr(GFISettings, name):
                raise ValueError(
                    f"gfi=GFISettings({name}={getattr(gfi, name)!r}): GFI measures once an "
                    f"experience and has no {name}; CETLStrategy has."
                )
        return given
    if gfi is not None and not isinstance(gfi, dict):
        raise TypeError(
            f"gfi has to be GFISettings(...) or a dict of GFIPlugin's keyword arguments, got "
            f"{type(gfi).__name__}."
        )
    return gfi or {}
