"""The variants of Table 2 and of section 3.1: which stages a round has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from avalanche_cetl.training.stages import (
    ClassifyStage,
    CoupledStage,
    DirectStage,
    MergedStage,
    SourceStage,
    TrainingStage,
)

#: Names of the variants in :data:`VARIANTS`.
VariantName = Literal["f", "u", "e", "fi", "gfi", "joint", "two_step", "direct"]


@dataclass(frozen=True)
class Variant:
    """The stages of a round, and what holds the weights between them.

    :ivar name: of the variant in records and checkpoints.
    :ivar stages: of a round, in their order, each with another ``label``.
    :ivar importance: that of the DWA penalties: none, plain Fisher information, or GFI.
    :ivar mixture: names of losses whose weights are scaled to a sum of one (eq. 3).
    """

    name: str
    stages: tuple[TrainingStage, ...]
    importance: Literal["fisher", "gfi"] | None = None
    mixture: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all losses that the stages compute."""
        return tuple(name for stage in self.stages for name in stage.names)

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of all losses and penalties that the stages record."""
        return (*self.names, *(stage.pays.name for stage in self.stages if stage.pays))

    @property
    def merged(self) -> bool:
        """Whether stages share the steps of a round."""
        return any(stage.beside for stage in self.stages)

    @property
    def described(self) -> list[str]:
        """The stages by name, with the epochs and factors of their own: a checkpoint names them."""
        return [_described(stage) for stage in self.stages]

    @property
    def needs_warmup(self) -> bool:
        """Whether T1 is trained on L_rs in the warm-up alone."""
        return "L_rt" in self.names and "L_rs" not in self.names


def _described(stage: TrainingStage) -> str:
    own = [_described(one) for one in stage.stages] if isinstance(stage, MergedStage) else []
    own += [f"epochs={stage.epochs}"] if stage.epochs is not None else []
    own += [f"lr_factor={float(stage.lr_factor)}"] if stage.lr_factor is not None else []
    return f"{stage.label} ({', '.join(own)})" if own else stage.label


_SOURCE, _COUPLED, _CLASSIFY = SourceStage(), CoupledStage(), ClassifyStage()
_TARGET_ALONE = CoupledStage(trains=("target",))
_ALL = (_SOURCE, _COUPLED, _CLASSIFY)

#: What T1 does before the first round, in every variant.
WARMUP = _SOURCE

#: The variants by name.
VARIANTS = {
    variant.name: variant
    for variant in (
        # T1 trained on L_rs in the warm-up, then fixed; T2 on L_rt and L_c
        Variant("f", (_TARGET_ALONE, _CLASSIFY)),
        # as f, but stage 2 updates T1 too (no return to stage 1)
        Variant("u", (_COUPLED, _CLASSIFY)),
        # Algorithm 1 without DWA
        Variant("e", _ALL),
        # Algorithm 1 with plain Fisher information in the DWA
        Variant("fi", _ALL, importance="fisher"),
        # Algorithm 1 as printed
        Variant("gfi", _ALL, importance="gfi"),
        # eq. 6: all losses in one step
        Variant("joint", (MergedStage((_CLASSIFY, _COUPLED, _SOURCE)),)),
        # eq. 3: after the warm-up, T2 on a mixture of L_c and L_rt
        Variant(
            "two_step",
            (MergedStage((_CLASSIFY, _TARGET_ALONE), trains=("target",)),),
            mixture=("L_c", "L_rt"),
        ),
        # not of the paper: T2 on L_c and on what plugins teach on target rows; T1 has no part
        Variant("direct", (MergedStage((_CLASSIFY, DirectStage()), trains=("target",)),)),
    )
}


def parse_variant(variant: str | Variant) -> Variant:
    """Return the variant of that name, or the variant itself.

    :raises ValueError: for another name, and for stages that share a label.
    """
    if isinstance(variant, str) and variant in VARIANTS:
        return VARIANTS[variant]
    if not isinstance(variant, Variant):
        allowed = ", ".join(map(repr, VARIANTS))
        raise ValueError(f"variant={variant!r} is not known. Allowed: {allowed}, or a Variant.")
    labels = [stage.label for stage in variant.stages]
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(
            f"the stages of variant {variant.name!r} have the labels {labels}: a variant needs at "
            "least one stage, and each a name of its own."
        )
    for stage in variant.stages:
        _check_stage(stage)
    return variant


def _check_stage(stage: TrainingStage) -> None:
    """Raise ValueError for what a stage may not have of its own."""
    epochs, factor = stage.epochs, stage.lr_factor
    if epochs is not None and (not isinstance(epochs, int) or epochs < 1):
        raise ValueError(f"stage {stage.label!r} has epochs={epochs!r}: None, or an int >= 1.")
    if factor is not None and not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"stage {stage.label!r} has lr_factor={factor!r}: None, or a number > 0.")
    inner = stage.stages if isinstance(stage, MergedStage) else (stage,)
    for one in inner:
        makes = type(one).make_module is not TrainingStage.make_module
        rates = makes or one.lr_factor is not None or (one is not stage and one.epochs is not None)
        if rates and not stage.own_optimizer:
            raise ValueError(
                f"stage {one.label!r} has a module, a learning rate or epochs of its own, so it "
                f"needs an optimiser of its own, and {stage.label!r} steps the user's: give it "
                "callbacks other than Callbacks.ALL, and do not merge it."
            )
