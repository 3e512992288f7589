"""The variants of Table 2 and of section 3.1: which stages a round has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avalanche_cetl.training.stage_checks import check_stage
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
    def reconstructs(self) -> bool:
        """Whether a stage draws images from T2's code."""
        return "L_rt" in self.names

    @property
    def uses_decoder(self) -> bool:
        """Whether a stage runs or trains T1, as far as its class or ``trains`` tells."""
        return any(
            isinstance(one, SourceStage | CoupledStage) or "decoder" in (one.trains or ())
            for stage in self.stages
            for one in stage.parts
        )

    @property
    def needs_warmup(self) -> bool:
        """Whether T1 is trained on L_rs in the warm-up alone."""
        return self.reconstructs and "L_rs" not in self.names


def _described(stage: TrainingStage) -> str:
    own = [_described(one) for one in stage.parts if one is not stage]
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

    :raises TypeError: for stages that are no objects of a :class:`TrainingStage`.
    :raises ValueError: for another name, for stages that share a label, and for what a variant or
        a stage cannot have.
    """
    if isinstance(variant, str) and variant in VARIANTS:
        return VARIANTS[variant]
    if not isinstance(variant, Variant):
        allowed = ", ".join(map(repr, VARIANTS))
        raise ValueError(f"variant={variant!r} is not known. Allowed: {allowed}, or a Variant.")
    name, stages = variant.name, variant.stages
    if not isinstance(stages, tuple | list):
        raise TypeError(f"the stages of variant {name!r} are a tuple, got {stages!r}: a comma?")
    for stage in stages:
        check_stage(stage)
    labels = [stage.label for stage in stages]
    if not labels:
        raise ValueError(f"variant {name!r} has no stages: it needs at least one.")
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"{labels.count(label)} stages of variant {name!r} are called {label!r}: each "
                "needs a name of its own. Set `name` in a subclass of one."
            )
    if variant.importance not in (None, "fisher", "gfi"):
        raise ValueError(
            f"variant {name!r} has importance={variant.importance!r}. Allowed: 'gfi', 'fisher', "
            "None."
        )
    if not isinstance(name, str) or not name:
        raise ValueError(f"a variant has name={name!r}: a text that is not empty.")
    if name in VARIANTS and not _same(variant, VARIANTS[name]):
        raise ValueError(f"{name!r} is a variant of this package: give yours another name.")
    return variant


def _same(one: Variant, other: Variant) -> bool:
    """Return whether variants say the same; copies of a strategy have copies of the stages."""

    def told(variant: Variant) -> tuple[object, ...]:
        kinds = [type(stage) for stage in variant.stages]
        return kinds, variant.described, variant.importance, variant.mixture

    return told(one) == told(other)
