"""What a stage may have of its own, checked when a strategy is made."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.stages import Callbacks, Payment, TrainingStage

_ROWS = ("target", "labelled")
_NETWORKS = ("decoder", "target")
_IMPORTANCES = ("GFI1", "GFI2", "GFI3")


def check_stage(stage: TrainingStage) -> None:
    """Raise an error for what a stage may not have.

    :raises TypeError: for what is no object of a :class:`TrainingStage`.
    :raises ValueError: for an attribute out of range, with its value and what is allowed.
    """
    _check_attributes(stage)
    for one in stage.parts:
        if one is not stage:
            _check_attributes(one)
        makes = type(one).make_module is not TrainingStage.make_module
        rates = makes or one.lr_factor is not None or (one is not stage and one.epochs is not None)
        if rates and not stage.own_optimizer:
            raise ValueError(
                f"stage {one.label!r} has a module, a learning rate or epochs of its own, so it "
                f"needs an optimiser of its own, and {stage.label!r} steps the user's: give it "
                "callbacks other than Callbacks.ALL, and do not merge it."
            )


def _check_attributes(stage: Any) -> None:
    if isinstance(stage, type):
        raise TypeError(
            f"a stage is an object, got the class {stage.__name__}: write {stage.__name__}()."
        )
    if not isinstance(stage, TrainingStage):
        raise TypeError(f"a stage is an object of a TrainingStage, got {stage!r}.")
    kind = type(stage)
    alone = kind.pieces is TrainingStage.pieces and stage.parts == (stage,)
    if kind.losses is TrainingStage.losses and alone:
        raise ValueError(
            f"{kind.__name__} has no method losses(networks, batch), which returns its losses."
        )
    epochs, factor, pays = stage.epochs, stage.lr_factor, stage.pays
    for name, right, allowed in (
        ("kind", isinstance(stage.kind, Stage), "a Stage"),
        ("name", isinstance(stage.name, str), "a text"),
        ("reads", stage.reads in _ROWS, "'target' or 'labelled'"),
        ("beside", stage.beside in (None, "target"), "None or 'target'"),
        (
            "trains",
            stage.trains is None or _of(stage.trains, _NETWORKS),
            "a tuple of 'decoder' and 'target', or None; its own module it always trains",
        ),
        ("names", _of(stage.names), "a tuple of the names of its losses, such as ('L_own',)"),
        (
            "epochs",
            epochs is None or (isinstance(epochs, int) and epochs >= 1),
            "None, or an int >= 1",
        ),
        (
            "lr_factor",
            factor is None or (isinstance(factor, Real) and math.isfinite(factor) and factor > 0),
            "None, or a number > 0",
        ),
        (
            "pays",
            pays is None or (isinstance(pays, Payment) and pays.importance in _IMPORTANCES),
            "None, or a Payment of 'GFI1', 'GFI2' or 'GFI3'",
        ),
        ("measures", _of(stage.measures, _IMPORTANCES), "a tuple of 'GFI1', 'GFI2', 'GFI3'"),
        ("callbacks", isinstance(stage.callbacks, Callbacks), "one of Callbacks"),
    ):
        if not right:
            raise ValueError(
                f"stage {stage.label!r} has {name}={getattr(stage, name)!r}: {allowed}."
            )


def _of(value: Any, allowed: tuple[str, ...] | None = None) -> bool:
    """Return whether a value is a tuple or list of texts, all of them allowed."""
    return isinstance(value, tuple | list) and all(
        isinstance(one, str) and bool(one) and (allowed is None or one in allowed) for one in value
    )
