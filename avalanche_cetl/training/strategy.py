"""CETLStrategy: Algorithm 1 inside Avalanche's training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from avalanche.core import BasePlugin
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import trigger_plugins
from torch import Tensor
from torch.optim import Optimizer

from avalanche_cetl.allocation import GFISettings
from avalanche_cetl.common.validation import renamed
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import CETLPlugin
from avalanche_cetl.training import checks, shown
from avalanche_cetl.training.data import TrainingData, listed_classes
from avalanche_cetl.training.engine import Precision
from avalanche_cetl.training.estimate import Estimate, estimate
from avalanche_cetl.training.parts import Parts
from avalanche_cetl.training.presets import PresetName
from avalanche_cetl.training.recipe import Alternate, Recipe
from avalanche_cetl.training.rounds import Round
from avalanche_cetl.training.stages import LabelledRows
from avalanche_cetl.training.variants import Variant, VariantName


class CETLStrategy(Parts, SupervisedTemplate):
    """Coupled end-to-end transfer learning (Chen, Zhang, Dong; CVPR 2018), Algorithm 1.

    One training epoch is one round over the stages of the variant; which callbacks fire in which
    stage is in the docstring of :mod:`avalanche_cetl.training`. A model and an optimiser are
    enough. ``variant``, and options of the stages and of the penalty, come from the preset where
    they are None; ranges and rules are at :class:`Recipe`.

    **What is trained**

    :param model: the coupled network; ``CoupledModel(None, ...)``, without S, has no stage 1, and
        stage 2 reconstructs x itself, which is DRCN.
    :param optimizer: an ordinary optimiser over ``model.parameters()``. Stage 3 uses it;
        stages 1 and 2 get their own of the same class and settings, so moments do not mix,
        and a scheduler on this one moves all.
    :param criterion: L_c, ``(logits, labels) -> scalar``; unlabelled rows never reach it.

    **What is learnt**

    :param preset: ``"best"``, the default: what measured best, which adds plugins
        (:mod:`avalanche_cetl.training.presets`) that fit the experience, and logs which;
        ``"paper"``: the algorithm as printed.
    :param variant: ``"direct"``, the preset's: T1 has no part; ``"gfi"``: Algorithm 1;
        ``"f" "u" "e" "fi" "joint" "two_step"``: Table 2; or a :class:`Variant` of your own.
        ``"best"`` takes ``"gfi"`` beside an option of the stages or of the penalty (below).
    :param loss_weights: of L_rs, L_c and L_rt, in this order.
    :param augment: random views of a mini-batch of images, for T2's input.

    **The stages**, of variants with a decoder

    :param alternate: ``"epoch"``: a stage passes over all its data, then the next one does;
        ``"iteration"``: they take turns at every mini-batch.
    :param stage_epochs: passes of stages 1, 2 and 3 in a round; ``"balanced"``: as many of stage 3
        as give it the steps of stage 2.
    :param lr_factors: on the learning rates of stages 1 and 2.
    :param warmup_epochs: of stage 1 alone, before the first round.
    :param input_noise: share of T2's input pixels that are set to 0 in stage 2.
    :param fixed_goal: in stage 2 T1(S(x)) stays what it was when the stage began.

    **The penalty** between the stages, of the variants ``"gfi"`` and ``"fi"``

    :param dwa_lambda: its strength, lambda of eq. 11.
    :param gfi: how importances are measured and gated, see :class:`GFISettings`.

    **How it is computed**; of these ``accumulate`` alone changes what is learnt

    :param precision: of forward passes: ``"float32"`` or ``"bfloat16"``; see :class:`Engine`.
    :param channels_last: lay images out channels last, which is faster on many devices.
    :param accumulate: mini-batches to a step of the optimiser.
    :param compile: by ``torch.compile``; True, or the name of a backend.

    **What every Avalanche strategy has**, see
    :class:`~avalanche.training.templates.SupervisedTemplate`

    :param train_mb_size: mini-batch size in all stages; with several processes (an initialised
        group of torch.distributed) that of all together.
    :param train_epochs: number of rounds.
    :param eval_mb_size: mini-batch size of evaluation.
    :param device: where to train.
    :param plugins: of Avalanche, of this package or of your own. One that records the same losses
        as a plugin of the preset takes its place.
    :param evaluator: metrics and loggers.
    :param eval_every: rounds between two evaluations; -1: none, 0: at the end of an experience.
    :param peval_mode: ``"epoch"``, or ``"iteration"``: ``eval_every`` counts the steps of stage 3.

    :ivar recipe: the options that decide what is learnt. Each can also be read, and set, by its
        own name; :meth:`configure` sets several.
    :ivar coupled: the step's mini-batch of target images, a :class:`Batch`, with what stage 2 (or
        another stage that runs T2) computed on it; None in the other stages.
    :ivar resume: where it stands, and where a loaded checkpoint lets it go on.
    :raises TypeError: when the model is no CoupledModel.
    :raises ValueError: for arguments out of range; in training for data without labelled rows or
        rows of domain 0, and where all of T2 is frozen; and :class:`NonFiniteLossError` when a loss
        is not finite.
    """

    PLUGIN_CLASS = CETLPlugin
    adapted_dataset: Any
    dataloader: Any
    _stop_training: bool
    optimized_param_id: Any

    @renamed(ewc_lambda="dwa_lambda")
    def __init__(
        self,
        *,
        model: CoupledModel,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        variant: VariantName | Variant | None = None,
        loss_weights: Sequence[float] = (1.0, 1.0, 1.0),
        preset: PresetName | None = "best",
        dwa_lambda: float | None = None,
        gfi: GFISettings | None = None,
        alternate: Alternate = "epoch",
        stage_epochs: Sequence[int] | Literal["balanced"] | None = None,
        lr_factors: Sequence[float] | None = None,
        warmup_epochs: int | None = None,
        input_noise: float | None = None,
        fixed_goal: bool | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        precision: Precision = "float32",
        channels_last: bool = False,
        accumulate: int = 1,
        compile: bool | str = False,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        peval_mode: Literal["epoch", "iteration"] = "epoch",
    ):
        checks.check_networks(model, optimizer)
        recipe = Recipe.of(
            preset,
            variant=variant, loss_weights=loss_weights, dwa_lambda=dwa_lambda, gfi=gfi,
            alternate=alternate, stage_epochs=stage_epochs, lr_factors=lr_factors,
            warmup_epochs=warmup_epochs, input_noise=input_noise, fixed_goal=fixed_goal,
            augment=augment, precision=precision, channels_last=channels_last,
            accumulate=accumulate, compile=compile,
        )  # fmt: skip
        recipe.check_warmup(model)
        super().__init__(
            model=model, optimizer=optimizer, criterion=LabelledRows.of(criterion),
            train_mb_size=train_mb_size, train_epochs=train_epochs, eval_mb_size=eval_mb_size,
            device=device,
            plugins=recipe.values.plugins_beside(plugins or (), model, recipe.variant),
            evaluator=evaluator, eval_every=eval_every, peval_mode=peval_mode,
        )  # fmt: skip
        self.make_parts(recipe)

    def estimate(self, experience: Any, *, share: float = 0.2, seed: int = 0) -> Estimate:
        """Compare, before training, a probe on S with T2 alone.

        It takes about as long as T2 alone; the model moves to the strategy's device, as it would
        in training, and nothing else of the strategy changes.

        :param experience: of the training stream; two classes or more of its target rows have
            labels, one of them two.
        :param share: of the labelled target rows of each class that is held out, in (0, 1).
        :param seed: of the choice of these rows, and of T2's training.
        :raises ValueError: without S, or without a row that could be held out.
        """
        return estimate(self, CETLStrategy, experience, share, seed)

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Train on an experience or a stream; after ``load_checkpoint`` go on where that stood."""
        streams = [experiences] if eval_streams is None else eval_streams
        try:
            with self.engine.running(self.model):
                rest = self.resume.begin_call(experiences)
                results: dict[str, Any] = super().train(rest, streams, **kwargs)
        finally:
            self.training_data, self.batches = None, {}  # after an error none is in training either
        self.resume.end_call()
        return results

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        done = self.resume.begin_experience(self.data.counts)
        for _ in range(done, self.train_epochs):
            with shown.iterations_shown(self, Round(self).iterations):
                self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)

    def training_epoch(self, **kwargs: Any) -> None:
        """Run one round: the stages of the variant."""
        self.meters.begin()
        self.networks.criterion = self._criterion  # a plugin may have put another one there
        Round(self, **kwargs).run()

    def _after_training_epoch(self, **kwargs: Any) -> None:
        self.meters.merge(self.engine.parallel.processes)
        checks.check_finite_weights(self.model, self.clock)
        with shown.accuracy_of_labels(self):
            super()._after_training_epoch(**kwargs)
        self.resume.whole = True
        trigger_plugins(self, "after_round", **kwargs)
        self.resume.whole = False

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self.resume.end_experience()

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Keep the labelled rows for stage 3, the rows of domain 0 for stages 1 and 2."""
        super().train_dataset_adaptation(**kwargs)
        checks.check_replay(self.plugins, self.adapted_dataset)
        self.training_data = TrainingData.of(self, self.model)
        self.adapted_dataset = self.data.rows.labelled

    def model_adaptation(self, model: Any = None) -> Any:
        """Let heads grow, as every Avalanche strategy does."""
        with listed_classes(self.experience, self.model):
            return super().model_adaptation(model)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Make stage 3's loader (Avalanche's own) and that of stages 1 and 2."""
        labelled, self.adapted_dataset = self.adapted_dataset, self.data.rows.target
        super().make_train_dataloader(**kwargs)
        self.data.loader = self.engine.parallel.shared(self.dataloader)
        self.adapted_dataset, self.dataloader = labelled, []
        if len(labelled):
            super().make_train_dataloader(**kwargs)
            self.dataloader = self.engine.parallel.shared(self.dataloader)

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Make Avalanche's loader; with several processes each evaluates on everything."""
        super().make_eval_dataloader(**kwargs)
        self.dataloader = self.engine.parallel.whole(self.dataloader)

    def check_model_and_optimizer(self, *args: Any, **kwargs: Any) -> None:
        """Adapt both; refuse labels without an output, and a T2 that cannot learn."""
        super().check_model_and_optimizer(*args, **kwargs)
        self.data.check_classes()
        Round(self).check_trainable()

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Cover the trainable parameters, S's never; the stages' optimisers follow."""
        self.networks.model = self.model
        self.optimized_param_id = update_optimizer(
            self.optimizer,
            {name: p for name, p in self.model.named_parameters() if p.requires_grad},
            self.optimized_param_id,
            reset_state=reset_optimizer_state,
            remove_params=kwargs.get("remove_params", False),
            verbose=kwargs.get("verbose_optimizer", False),
        )
        for own in self.optimizers.values():
            own.prepare(self.optimizer, self.model)
        self.engine.parallel.cover(self.model, self.networks.modules.values())

    def _before_training_exp(self, **kwargs: Any) -> None:
        # A stop asked for in the last epoch would otherwise silence the next experience.
        self._stop_training = False
        super()._before_training_exp(**kwargs)
        Round(self, **kwargs).warm_up(self.warmup_epochs)

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self.training_data, self.batches = None, {}

    def _unpack_minibatch(self) -> None:
        super()._unpack_minibatch()
        self.mbatch[0] = self.engine.functions.laid_out(self.mbatch[0])

    def forward(self) -> Tensor:
        """Return T2's logits, in float32, as Avalanche's loops ask for them."""
        with self.engine.cast(self.device):
            if self.is_training and self.engine.functions.compiled:
                return self.networks.logits(self.mb_x, self.mb_task_id).float()
            result: Tensor = super().forward().float()
            return result
