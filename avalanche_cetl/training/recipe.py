"""Recipe: every option of CETL's training, as it is in force."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import Tensor

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.validation import check_choice, check_weight
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.engine import Engine, Precision
from avalanche_cetl.training.presets import Preset, parse_preset
from avalanche_cetl.training.stages import TrainingStage
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
#: Options that say how it is computed.
COMPUTED = ("precision", "channels_last", "accumulate", "compile")
#: Options that mean nothing without the decoder: where one is given, there is one.
_COUPLED = (
    "dwa_lambda", "gfi", "stage_epochs", "lr_factors", "warmup_epochs", "input_noise", "fixed_goal",
)  # fmt: skip
_OWN: dict[type, Callable[[Any], Any]] = {list: tuple, dict: dict, MappingProxyType: dict}


def _preset_of(preset: str | None, given: Mapping[str, Any]) -> Preset:
    """Return the preset of that name, for the keywords that were given beside it."""
    variant = given["variant"]
    coupled = given["alternate"] != "epoch" or any(given.get(name) is not None for name in _COUPLED)
    if variant is None and coupled:
        variant = "gfi"
    return parse_preset(preset, variant)


@dataclass(frozen=True)
class Recipe:
    """What is learnt, and how it is computed, as the keywords of :class:`CETLStrategy` say it.

    The one place where the options are; it checks itself.

    :ivar variant: which stages a round has, and what holds the weights between them.
    :ivar loss_weights: lambda_1, lambda_2, lambda_3 of eq. 6 by name: weights of L_rs, L_c, L_rt,
        finite and >= 0, in every variant; eq. 3's lambda is ``l2 / (l2 + l3)``.
    :ivar dwa_lambda: lambda of eq. 11, finite and >= 0. With ``GFISettings(normalize=True)`` it
        counts against importances of mean 1.
    :ivar gfi: how Generalized Fisher Information is measured.
    :ivar alternate: ``"epoch"``: each stage passes over all its data in turn; ``"iteration"``: the
        stages take turns at every mini-batch (shorter sets start again).
    :ivar stage_epochs: passes over their data that stages 1, 2 and 3 make in a round, each >= 1;
        with ``alternate="epoch"`` only; by default one each. ``"balanced"``: stages 1 and 2 make
        one, and stage 3 as many as come nearest to the steps of stage 2, at least one: with few
        labels T2 would otherwise learn to draw far more often than to classify. The paper does not
        say.
    :ivar lr_factors: factors, finite and > 0, on the learning rates of stages 1 and 2; stage 3 has
        the optimizer's own. The weight of a stage's only loss means nothing to Adam; this does. By
        default (1, 1), as in the paper. With few labels and no other images a stage 2 as fast as
        stage 3 costs T2 accuracy (``benchmarks/suite``); (1, 0.1) costs less.
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
    :ivar precision: see :class:`Engine`, as the next three: they say how it is computed.
    :ivar preset: name of the preset that gives what was not given.
    :ivar given: the keywords of the strategy as they were given. What was not given follows from
        what was, so another value of one option may change others.
    :raises TypeError: for an option of a wrong type.
    :raises ValueError: for values out of range, or that do not go together.
    """

    variant: Variant
    loss_weights: dict[str, float]
    dwa_lambda: float
    gfi: GFISettings
    alternate: Alternate
    stage_epochs: tuple[int, ...] | Literal["balanced"]
    lr_factors: tuple[float, ...]
    warmup_epochs: int
    input_noise: float
    fixed_goal: bool
    augment: Callable[[Tensor], Tensor] | None
    precision: Precision
    channels_last: bool
    accumulate: int
    compile: bool | str
    preset: str | None
    given: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def of(
        cls,
        preset: str | None = "best",
        *,
        variant: str | Variant | None = None,
        loss_weights: Sequence[float] | Mapping[str, float] = (1.0, 1.0, 1.0),
        alternate: Alternate = "epoch",
        **options: Any,
    ) -> Recipe:
        """Return the recipe of a strategy's keywords; its preset fills those that are None."""
        given = {"variant": variant, "loss_weights": loss_weights, "alternate": alternate} | options
        # Copies: what the user has may change.
        given = {n: _OWN[type(v)](v) if type(v) in _OWN else v for n, v in given.items()}
        if variant:  # before the preset looks at its stages
            parse_variant(variant)
        values = _preset_of(preset, given)
        parsed = parse_variant(variant or values.variant)
        if isinstance(loss_weights, Mapping):  # as the recipe shows them
            if set(loss_weights) != set(LOSSES):
                raise ValueError(f"loss_weights={loss_weights!r}: a weight of each of {LOSSES}.")
            loss_weights = [loss_weights[name] for name in LOSSES]
        if not isinstance(loss_weights, Sequence) or len(loss_weights) != 3:
            raise ValueError(f"loss_weights={loss_weights!r}: three weights, of L_rs, L_c, L_rt.")
        by_turns = alternate == "iteration"
        defaults = {
            "dwa_lambda": values.dwa_lambda,
            "gfi": values.gfi,
            "warmup_epochs": values.warmup_epochs,
            "input_noise": values.input_noise,
            "fixed_goal": values.fixed_goal and alternate == "epoch" and not parsed.merged,
            "stage_epochs": _ONE_EACH if by_turns else values.stage_epochs,
            "lr_factors": values.lr_factors,
            "augment": None,
            "precision": "float32",
            "channels_last": False,
            "accumulate": 1,
            "compile": False,
        }
        if values.warmup_epochs is None:
            defaults["warmup_epochs"] = 10 if parsed.needs_warmup else 0
        unknown = sorted(options.keys() - defaults.keys())
        if unknown:
            known = ("variant", "loss_weights", "alternate", *defaults)
            raise TypeError(
                f"{unknown[0]}= is no option that can change. Those that can: {', '.join(known)}."
            )
        chosen: dict[str, Any] = {
            name: default if given.get(name) is None else given[name]
            for name, default in defaults.items()
        }
        for name in ("lr_factors", "stage_epochs"):
            if isinstance(chosen[name], int | float):
                raise TypeError(f"{name}={chosen[name]!r}: a number for each stage, as a sequence.")
            if not isinstance(chosen[name], str):
                chosen[name] = tuple(chosen[name])
        weights = dict(zip(LOSSES, map(float, loss_weights), strict=True))
        return cls(
            variant=parsed, loss_weights=weights, alternate=alternate, preset=preset, given=given,
            **chosen,
        )  # fmt: skip

    def changed(self, options: Mapping[str, Any]) -> Recipe:
        """Return the recipe with some options given anew; what was not given follows.

        :raises TypeError: for a name that is no option.
        """
        return Recipe.of(self.preset, **{**self.given, **options})

    @property
    def values(self) -> Preset:
        """Return the preset that gives what was not given, and plugins."""
        return _preset_of(self.preset, self.given)

    def engine(self) -> Engine:
        """Return a new engine that computes as the recipe says."""
        return Engine(self.precision, self.channels_last, self.accumulate, self.compile)

    def __post_init__(self) -> None:
        if not isinstance(self.gfi, GFISettings):
            raise TypeError(f"gfi has to be GFISettings(...), got {type(self.gfi).__name__}.")
        weights = list(self.loss_weights.values())
        if len(weights) != 3 or not all(math.isfinite(w) and w >= 0 for w in weights):
            raise ValueError(
                f"loss_weights={weights}: three finite weights >= 0 of L_rs, L_c, L_rt."
            )
        mixture = self.variant.mixture
        for name in mixture:
            if name not in LOSSES or name not in self.variant.names:
                raise ValueError(
                    f"variant {self.variant.name!r} has {name!r} in its mixture: losses of its "
                    f"stages, of {LOSSES}, whose weights are loss_weights."
                )
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
        self.engine().check_accumulation(self.shares_steps)

    def _check_stages(self) -> None:
        alternate, epochs = self.alternate, self.stage_epochs
        check_choice("alternate", alternate, get_args(Alternate))
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
        options = {name: getattr(self, name) for name in (*names, "input_noise", "fixed_goal")}
        return {"variant": self.variant.name} | options | {"gfi": self.gfi}
