"""The variants of Table 2, and how each uses the three stages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """How a variant uses the three stages.

    :ivar stage1_in_rounds: stage 1 runs in every round, not only in the warm-up.
    :ivar decoder_in_stage2: stage 2 trains T1 as well as T2.
    :ivar importance: the DWA penalty's importance: none, plain Fisher, or GFI.
    :ivar merged: None for separate stages; else the losses that one step minimises together.
    """

    stage1_in_rounds: bool
    decoder_in_stage2: bool
    importance: Literal["fisher", "gfi"] | None = None
    merged: tuple[str, ...] | None = None


class Variant(Enum):
    """The configurations of Table 2, and the two other ways of learning of section 3.1."""

    F = "f"  #: T1 trained on L_rs in the warm-up, then fixed; T2 on L_rt and L_c
    U = "u"  #: as f, but stage 2 updates T1 too (no return to stage 1)
    E = "e"  #: Algorithm 1 without DWA
    FI = "fi"  #: Algorithm 1 with plain Fisher information in the DWA
    GFI = "gfi"  #: Algorithm 1 as printed
    JOINT = "joint"  #: eq. 6: all losses in one step
    TWO_STEP = "two_step"  #: eq. 3: after the warm-up, T2 on a mixture of L_c and L_rt

    @property
    def plan(self) -> Plan:
        """How this variant uses the stages."""
        return _PLANS[self]

    @property
    def needs_warmup(self) -> bool:
        """Whether T1 is trained on L_rs in the warm-up alone."""
        plan = self.plan
        rounds = plan.stage1_in_rounds or (plan.merged is not None and "L_rs" in plan.merged)
        return not rounds


_PLANS = {
    Variant.F: Plan(stage1_in_rounds=False, decoder_in_stage2=False),
    Variant.U: Plan(stage1_in_rounds=False, decoder_in_stage2=True),
    Variant.E: Plan(stage1_in_rounds=True, decoder_in_stage2=True),
    Variant.FI: Plan(stage1_in_rounds=True, decoder_in_stage2=True, importance="fisher"),
    Variant.GFI: Plan(stage1_in_rounds=True, decoder_in_stage2=True, importance="gfi"),
    Variant.JOINT: Plan(False, True, merged=("L_rs", "L_c", "L_rt")),
    Variant.TWO_STEP: Plan(False, False, merged=("L_c", "L_rt")),
}


def parse_variant(variant: str | Variant) -> Variant:
    """Give the variant of that name.

    :raises ValueError: for another name.
    """
    try:
        return Variant(variant)
    except ValueError:
        allowed = ", ".join(repr(v.value) for v in Variant)
        raise ValueError(f"variant={variant!r} is not known. Allowed: {allowed}.") from None
