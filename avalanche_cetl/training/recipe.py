"""Recipe: every option that decides what CETL learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.validation import check_weight
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.presets import Preset
from avalanche_cetl.training.stages.base import TrainingStage
from avalanche_cetl.training.variants import Variant, parse_variant

#: The losses of eq. 6, in the order of lambda_1, lambda_2, lambda_3.
LOSSES = ("L_rs", "L_c", "L_rt")
#: Stages in the order of ``stage_epochs`` and ``lr_factors``.
_NUMBERED = (Stage.SOURCE, Stage.COUPLED, Stage.CLASSIFY)
#: When stages take turns: after a pass over all their data, or at every mini-batch.
Alternate = Literal["epoch", "iteration"]
#: ``stage_epochs`` by which stage 3 makes about as many steps as stage 2.
BALANCED = "balanced"
_ONE_EACH = (1, 1, 1)


@dataclass(frozen=True)
class Recipe:
    """What is learnt, as the keywords of :class:`CETLStrategy` say it; checks itself.

    :ivar variant: which stages a round has, and what holds the weights between them.
    :ivar loss_weights: lambda_1, lambda_2, lambda_3 of eq. 6 by name: weights of L_rs, L_c, L_rt,
        finite and >= 0, in every variant; eq. 3's lambda is ``l2 / (l2 + l3)``.
    :ivar dwa_lambda: lambda of eq. 11, finite and >= 0. With ``GFISettings(normalize=True)`` it
        counts against importances of mean 1.
    :ivar gfi: how Generalized Fisher Information is measured.
    :ivar alternate: ``"epoch"``: each stage passes over all its data in turn; ``"iteration"``: the
        stages take turns at every mini-batch (shorter sets start again).
    :ivar stage_epochs: passes over their data that stages 1, 2 and 3 make in a round, each >= 1;
        with ``alternate="epoch"`` only. ``"balanced"``, the default: stages 1 and 2 make one, and
        stage 3 as many as come nearest to the steps of stage 2, at least one: with few labels T2
        would otherwise learn to draw far more often than to classify. The paper does not say.
    :ivar lr_factors: factors, finite and > 0, on the learning rates of stages 1 and 2; stage 3 has
        the optimizer's own. The weight of a stage's only loss means nothing to Adam; this does. By
        default (1, 0.1): with few labels and no other images a stage 2 as fast as stage 3 costs T2
        accuracy (``benchmarks/suite``). The paper has one rate.
    :ivar warmup_epochs: epochs of stage 1 before the first round of the first experience, >= 0;
        with ``train_epochs=0`` they are all there is. Variants that train T1 on L_rs there alone
        need one.
    :ivar input_noise: share in [0, 1) of T2's input pixels set to zero in stage 2, while the goal
        T1(S(x)) stays that of the clean image. The paper has none.
    :ivar fixed_goal: in stage 2 the goal T1(S(x)) comes from T1 as it was when the stage began, so
        that the two sides of L_rt do not move together; with ``alternate="epoch"`` and separate
        stages only, and the default there. The paper takes the goal from T1 as it changes, which
        can run away: with many or large steps and no DWA1 nothing holds T1(S(x)).
    :ivar augment: random views of a mini-batch of images ``(N, C, H, W)``, of the same shape;
        applied to T2's input in stages 2 and 3, while stage 1 and the goal T1(S(x)) read the clean
        images, so that features stored once serve every view. None: no views.
    :raises TypeError: when ``gfi`` is not :class:`GFISettings`.
    :raises ValueError: for values out of range, or that do not go together.
    """

    variant: Variant
    loss_weights: dict[str, float]
    dwa_lambda: float
    gfi: GFISettings
    alternate: Alternate
    stage_epochs: tuple[int, ...] | str
    lr_factors: tuple[float, ...]
    warmup_epochs: int
    input_noise: float
    fixed_goal: bool
    augment: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls,
        preset: Preset,
        *,
        variant: str | Variant,
        loss_weights: Sequence[float] | Mapping[str, float],
        alternate: Alternate,
        augment: Callable[[Tensor], Tensor] | None,
        **given: Any,
    ) -> Recipe:
        """Return the recipe of a strategy's keywords; a preset fills those that are None."""
        parsed = parse_variant(variant)
        if isinstance(loss_weights, Mapping):  # as the recipe shows them
            if set(loss_weights) != set(LOSSES):
                raise ValueError(f"loss_weights={loss_weights!r}: a weight of each of {LOSSES}.")
            loss_weights = [loss_weights[name] for name in LOSSES]
        if not isinstance(loss_weights, Sequence) or len(loss_weights) != 3:
            raise ValueError(f"loss_weights={loss_weights!r}: three weights, of L_rs, L_c, L_rt.")
        fixable = alternate == "epoch" and not parsed.merged
        chosen = preset.fill(given, needs_warmup=parsed.needs_warmup, fixable=fixable)
        for name in ("lr_factors", "stage_epochs"):
            if isinstance(chosen[name], int | float):
                raise TypeError(f"{name}={chosen[name]!r}: a number for each stage, as a sequence.")
        chosen["lr_factors"] = tuple(chosen["lr_factors"])
        if alternate == "iteration" and given["stage_epochs"] is None:
            chosen["stage_epochs"] = _ONE_EACH
        if not isinstance(chosen["stage_epochs"], str):
            chosen["stage_epochs"] = tuple(chosen["stage_epochs"])
        return cls(
            variant=parsed,
            loss_weights=dict(zip(LOSSES, map(float, loss_weights), strict=True)),
            alternate=alternate,
            augment=augment,
            **chosen,
        )

    def __post_init__(self) -> None:
        if not isinstance(self.gfi, GFISettings):
            raise TypeError(f"gfi has to be GFISettings(...), got {type(self.gfi).__name__}.")
        weights = list(self.loss_weights.values())
        if len(weights) != 3 or not all(math.isfinite(w) and w >= 0 for w in weights):
            raise ValueError(
                f"loss_weights={weights}: three finite weights >= 0 of L_rs, L_c, L_rt."
            )
        mixture = self.variant.mixture
        if mixture and not sum(self.loss_weights[name] for name in mixture):
            raise ValueError(f"loss_weights={weights}: those of {mixture} are all 0.")
        check_weight("dwa_lambda", self.dwa_lambda)
        self._check_stages()
        factors = self.lr_factors
        if len(factors) != 2 or not all(math.isfinite(f) and f > 0 for f in factors):
            raise ValueError(f"lr_factors={factors!r}: two finite factors > 0, of stages 1 and 2.")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: has to be >= 0.")
        if not 0 <= self.input_noise < 1:
            raise ValueError(f"input_noise={self.input_noise} is outside [0, 1).")
        if self.fixed_goal and self.shares_steps:
            raise ValueError(
                "fixed_goal=True goes with alternate='epoch' and variants that have a stage 2: "
                "otherwise the goal and T1 take turns at every mini-batch anyway."
            )

    def _check_stages(self) -> None:
        alternate, epochs = self.alternate, self.stage_epochs
        if alternate not in get_args(Alternate):
            raise ValueError(
                f"alternate={alternate!r} is not known. Allowed: 'epoch', 'iteration'."
            )
        if epochs != BALANCED and (
            isinstance(epochs, str)
            or len(epochs) != 3
            or not all(isinstance(n, int) and n >= 1 for n in epochs)
        ):
            raise ValueError(
                f"stage_epochs={epochs!r}: {BALANCED!r}, or three whole numbers >= 1, one for each "
                "stage."
            )
        own = [stage for stage in self.variant.stages if stage.epochs not in (None, 1)]
        if own and self.shares_steps:
            raise ValueError(
                f"stage {own[0].label!r} has epochs={own[0].epochs}, which goes with "
                "alternate='epoch' and variants with separate stages: otherwise stages share steps."
            )
        if alternate == "iteration" and epochs != _ONE_EACH:
            raise ValueError(
                "stage_epochs goes with alternate='epoch'; with 'iteration' stages share steps."
            )

    @property
    def shares_steps(self) -> bool:
        """Whether stages take turns at every mini-batch, or make one step together."""
        return self.alternate == "iteration" or self.variant.merged

    def check_warmup(self, model: CoupledModel) -> None:
        """Raise ValueError when T1 would never learn to read S's features."""
        if self.warmup_epochs == 0 and self.variant.needs_warmup and model.source is not None:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs}: has to be >= 1 for variant "
                f"{self.variant.name!r}, which trains T1 on L_rs in the warm-up alone."
            )

    def epochs(self, stage: TrainingStage, ratio: float = 1.0) -> int:
        """Return how often a stage passes over its data in a round.

        :param stage: of the round; its own ``epochs`` come first.
        :param ratio: mini-batches of target rows for one of labelled rows.
        """
        if stage.epochs is not None:
            return stage.epochs
        if isinstance(self.stage_epochs, str):
            return max(1, round(ratio)) if stage.kind is Stage.CLASSIFY else 1
        return self.stage_epochs[_NUMBERED.index(stage.kind)] if stage.kind in _NUMBERED else 1

    def lr_factor(self, stage: TrainingStage) -> float:
        """Return the factor on the learning rates of a stage."""
        if stage.lr_factor is not None:
            return stage.lr_factor
        factors = dict(zip(_NUMBERED, self.lr_factors, strict=False))  # stage 3 has none
        return float(factors.get(stage.kind, 1.0))

    def weight(self, name: str) -> float:
        """Return the weight of a loss: lambda_i, of a mixture's losses as a share; 1 for others."""
        weight = self.loss_weights.get(name, 1.0)
        mixture = self.variant.mixture
        if name in mixture:
            weight /= sum(self.loss_weights[one] for one in mixture)
        return weight

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint's strategy has to agree in, by name."""
        names = ("loss_weights", "dwa_lambda", "alternate", "stage_epochs", "lr_factors")
        found = {name: getattr(self, name) for name in (*names, "input_noise", "fixed_goal")}
        return {"variant": self.variant.name} | found | {"gfi": self.gfi}
