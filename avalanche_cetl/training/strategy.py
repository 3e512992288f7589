"""CETLStrategy: Algorithm 1 inside Avalanche's training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from avalanche.core import BasePlugin
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.utils import trigger_plugins
from torch import Tensor
from torch.nn import CrossEntropyLoss
from torch.optim import Optimizer

from avalanche_cetl.allocation.allocation import Allocation
from avalanche_cetl.allocation.measure import Importance, Sample
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.arguments import renamed
from avalanche_cetl.common.rows import FEATURES_INDEX, Rows, split_rows
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.features.attach import features_are_of
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.contract import CETLPlugin, CoupledStep, Stage
from avalanche_cetl.training.checks import (
    LabelledRows,
    check_arguments,
    check_classes,
    check_experience,
    check_finite_weights,
)
from avalanche_cetl.training.experience import listed_classes
from avalanche_cetl.training.goal import FixedGoal
from avalanche_cetl.training.optimizers import StageOptimizer
from avalanche_cetl.training.parallel import DataParallel, explained, share_of
from avalanche_cetl.training.presets import parse_preset
from avalanche_cetl.training.records import Means
from avalanche_cetl.training.resume import Resume
from avalanche_cetl.training.rounds import cycle
from avalanche_cetl.training.steps import StageSteps
from avalanche_cetl.training.switches import Passes, check_switches, parts
from avalanche_cetl.training.variants import Variant, parse_variant


class CETLStrategy(StageSteps):
    """Coupled end-to-end transfer learning (Chen, Zhang, Dong; CVPR 2018), Algorithm 1.

    One training epoch is one round: stage 1 trains T1 on ``L_rs = mean |T1(S(x)) - x|^2``
    with DWA2, stage 2 trains T1 and T2 on ``L_rt = mean |T1(T2(x)) - T1(S(x))|^2`` with
    DWA1 on T1, stage 3 trains T2 on the criterion with DWA3. Means are over batch and
    pixels. Reconstruction reads the rows of domain 0 (all rows where the data set has no
    ``domain_labels``), classification the rows with a label >= 0. Without a source network
    (``CoupledModel(None, ...)``) stage 1 falls away and stage 2 reconstructs x itself, which
    is DRCN.

    Stage 3 is Avalanche's ordinary training loop, with all its callbacks: stock plugins,
    loggers and minibatch metrics see it alone. Stage 2 fires ``before_backward`` as well, so
    that penalties (EWC, LwF, SI) hold T2 there too; a plugin that holds weights after a step
    (GFIPlugin) has its ``hold_weights(strategy, optimizer)`` called with that stage's optimiser.
    :class:`CETLPlugin` adds ``before_stage``, ``after_stage`` and ``after_step``.

    :param model: the coupled network.
    :param optimizer: an ordinary optimiser over ``model.parameters()``. Stage 3 uses it;
        stages 1 and 2 get their own of the same class and settings, so moments do not mix,
        and a scheduler on this one moves all.
    :param criterion: L_c, ``(logits, labels) -> scalar``; unlabelled rows never reach it.
    :param variant: ``"gfi"`` (default), ``"f" "u" "e" "fi" "joint" "two_step"``: see
        :class:`Variant`.
    :param loss_weights: lambda_1, lambda_2, lambda_3 of eq. 6: weights of L_rs, L_c, L_rt,
        in every variant; eq. 3's lambda is ``l2 / (l2 + l3)``.
    :param preset: values for those of ``dwa_lambda``, ``gfi``, ``lr_factors``, ``warmup_epochs``,
        ``input_noise`` and ``fixed_goal`` that are not given. ``"paper"``: the algorithm as
        printed, with GFI unscaled and a lambda of 1e-2 (the paper gives none). ``"best"``: what
        measured best: a fixed goal, a warm-up of 10 epochs, lambda 0.03, ``DecoderHints`` (with a
        decoder that has ``forward_hidden``), where target rows have labels ``SoftTargets`` of a
        probe on S, and for unlabelled rows ``ViewConsistency``, which wants classes that are about
        equally frequent; a plugin of the same class in ``plugins`` takes its place. It does best
        with :func:`with_mixed_images`. None: the defaults below.
    :param dwa_lambda: lambda of eq. 11, >= 0; default 1e-3. With ``GFISettings(normalize=True)``
        it counts against importances of mean 1.
    :param gfi: see :class:`GFISettings`.
    :param alternate: ``"epoch"``: each stage passes over all its data in turn;
        ``"iteration"``: the stages take turns at every mini-batch (shorter sets start again).
    :param stage_epochs: passes over their data that stages 1, 2 and 3 make in a round, each
        >= 1; with ``alternate="epoch"`` only. The paper does not say; default 1 each.
    :param lr_factors: factors, each > 0, on the learning rates of stages 1 and 2; stage 3 has
        the optimizer's own; default 1 each. The weight of a stage's only loss means nothing to
        Adam; this does.
    :param warmup_epochs: epochs of stage 1 before the first round of the first experience
        (with ``train_epochs=0`` they are all there is); default 0, but 10 for the variants
        that train T1 there alone.
    :param input_noise: share in [0, 1) of T2's input pixels set to zero in stage 2, while
        the goal T1(S(x)) stays that of the clean image. The paper has none; default 0.
    :param fixed_goal: in stage 2 the goal T1(S(x)) comes from T1 as it was when the stage began,
        so that the two sides of L_rt do not move together; with ``alternate="epoch"`` only. The
        paper takes the goal from T1 as it changes (default), which can run away: with many or
        large steps and no DWA1 nothing holds T1(S(x)).
    :param augment: gives random views of a mini-batch of images ``(N, C, H, W)``, of the same
        shape; applied to T2's input in stages 2 and 3, while stage 1 and the goal T1(S(x))
        read the clean images, so that features stored once serve every view. (A benchmark's
        ``train_transform`` changes what all stages read.) Default: none.
    :param precision: ``"float32"``, or ``"bfloat16"``: the forward passes under
        ``torch.autocast``; weights, losses, penalties and importances stay in float32.
    :param channels_last: lay images and convolutions out channels last, which is faster on GPUs
        with tensor cores and on many CPUs.
    :param accumulate: mini-batches to a step, >= 1; the gradient is the mean over all their rows,
        so that 4 with ``train_mb_size=32`` steps as 128 does. What is left at the end of a pass
        makes a step. With ``alternate="epoch"``, separate stages and one process only.
    :param compile: compile T1's and T2's training passes by ``torch.compile``; True, or the name
        of a backend. Every kind of pass is compiled when it is first met, and once more for another
        size of mini-batch: with a small CI-CNN and inductor on two CPU cores that makes the first
        round a minute or two longer.
    :param train_mb_size: mini-batch size in all stages; with several processes (an initialised
        group of torch.distributed) that of all together.
    :param train_epochs: number of rounds.
    :param eval_mb_size: mini-batch size in evaluation.
    :param device: where to train.
    :param plugins: Avalanche plugins that ride along.
    :param evaluator: as in every Avalanche strategy.
    :param eval_every: as in every Avalanche strategy; counts rounds.
    :param peval_mode: ``"epoch"`` or ``"iteration"`` (of stage 3).
    :ivar stage: the stage that runs, a :class:`Stage`.
    :ivar coupled: what stage 2 (or the merged step) computed on its latest mini-batch of
        target images, a :class:`CoupledStep`; None in the other stages.
    :ivar importance: the latest GFI1 to GFI3, by name.
    :ivar resume: where it stands, and where a loaded checkpoint lets it go on.
    :ivar round_losses: mean L_rs, L_rt, L_c, DWA1 to DWA3 and plugins' losses of the current
        round, by name.
    :raises TypeError: when the model is no CoupledModel.
    :raises ValueError: for arguments out of range; in training for data without labelled
        rows, rows of domain 0, or with the wrong shape or labels; and
        :class:`NonFiniteLossError` when a loss is not finite.
    """

    PLUGIN_CLASS = CETLPlugin

    adapted_dataset: Any
    optimized_param_id: Any
    _stop_training: bool
    dataloader: Any

    @renamed(ewc_lambda="dwa_lambda")
    def __init__(
        self,
        *,
        model: CoupledModel,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        variant: str | Variant = "gfi",
        loss_weights: Sequence[float] = (1.0, 1.0, 1.0),
        preset: str | None = None,
        dwa_lambda: float | None = None,
        gfi: GFISettings | None = None,
        alternate: str = "epoch",
        stage_epochs: Sequence[int] = (1, 1, 1),
        lr_factors: Sequence[float] | None = None,
        warmup_epochs: int | None = None,
        input_noise: float | None = None,
        fixed_goal: bool | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        precision: str = "float32",
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
        peval_mode: str = "epoch",
    ):
        self.variant = parse_variant(variant)
        self.plan = self.variant.plan
        own = parse_preset(preset)
        chosen = own.fill(
            self.variant,
            alternate,
            {
                "dwa_lambda": dwa_lambda,
                "gfi": gfi,
                "warmup_epochs": warmup_epochs,
                "input_noise": input_noise,
                "fixed_goal": fixed_goal,
                "lr_factors": lr_factors,
            },
        )
        self.gfi: GFISettings = chosen["gfi"]
        check_arguments(
            model,
            optimizer,
            self.variant,
            self.gfi,
            loss_weights,
            chosen["dwa_lambda"],
            alternate,
            stage_epochs,
            chosen["warmup_epochs"],
            chosen["input_noise"],
            chosen["fixed_goal"],
            chosen["lr_factors"],
        )
        check_switches(precision, channels_last, accumulate, compile)
        if accumulate > 1 and (alternate == "iteration" or self.plan.merged is not None):
            raise ValueError(
                f"accumulate={accumulate} goes with alternate='epoch' and variants with separate "
                "stages: otherwise stages would share gradients."
            )
        self.precision, self.channels_last, self.accumulate = precision, channels_last, accumulate
        self.passes = Passes(compile)
        self.loss_weights = dict(
            zip(("L_rs", "L_c", "L_rt"), map(float, loss_weights), strict=True)
        )
        self.dwa_lambda = float(chosen["dwa_lambda"])
        self.alternate = alternate
        self.stage_epochs = tuple(stage_epochs)
        self.lr_factors: tuple[float, float] = tuple(chosen["lr_factors"])
        self.warmup_epochs: int = chosen["warmup_epochs"]
        self.input_noise = float(chosen["input_noise"])
        self.augment = augment
        self.fixed_goal: bool = chosen["fixed_goal"]
        self._goal = FixedGoal()
        self.stage = Stage.CLASSIFY
        self.coupled: CoupledStep | None = None
        self.allocation = Allocation(self.plan.importance, self.gfi, self.dwa_lambda)
        self._round = Means()
        self._noise = torch.Generator().manual_seed(self.gfi.seed + 1)
        self._warm = False
        self._seen: tuple[Tensor, Tensor] | None = None
        criterion = CrossEntropyLoss() if criterion is None else criterion
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion if isinstance(criterion, BasePlugin) else LabelledRows(criterion),
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=own.plugins_beside(list(plugins or []), model),
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        self._source_optimizer = StageOptimizer(optimizer, float(self.lr_factors[0]))
        self._coupled_optimizer = StageOptimizer(optimizer, float(self.lr_factors[1]))
        self._rows: Rows | None = None
        self._target_loader: Iterable[Any] = []
        self.resume = Resume()
        self.parallel = DataParallel()

    @property
    def importance(self) -> dict[str, Importance]:
        """The latest GFI1 to GFI3, by name."""
        return self.allocation.importance

    @property
    def round_losses(self) -> dict[str, float]:
        """Mean losses and penalties of the current (or last) round, by name."""
        return self._round.result()

    # ------------------------------------------------------------------ calls and experiences

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Train on an experience or a stream, as every Avalanche strategy does.

        After ``load_checkpoint`` the first call goes on where the saved one stood.
        """
        if eval_streams is None:
            eval_streams = [experiences]
        now = DataParallel()
        if now.processes.size != self.parallel.processes.size:  # a group has begun, or ended
            self.parallel = now
        if self.accumulate > 1 and not self.parallel.alone:
            raise ValueError(
                f"accumulate={self.accumulate} goes with one process: with {now.processes.size}, "
                "each holds its share of train_mb_size already."
            )
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        try:
            result = super().train(self.resume.begin_call(experiences), eval_streams, **kwargs)
        except RuntimeError as problem:
            told = explained(problem, self.parallel)
            if told is problem:
                raise
            raise told from problem
        self.resume.end_call()
        return result

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        assert self._rows is not None
        done = self.resume.begin_experience((len(self._rows.target), len(self._rows.labelled)))
        for _ in range(done, self.train_epochs):
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)

    def _after_training_epoch(self, **kwargs: Any) -> None:
        clock = self.clock
        self._round.merge(self.parallel.processes)
        check_finite_weights(self.model, clock.train_exp_epochs, clock.train_exp_counter)
        super()._after_training_epoch(**kwargs)
        self.resume.whole = True
        trigger_plugins(self, "after_round", **kwargs)
        self.resume.whole = False

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self.resume.end_experience()

    # ------------------------------------------------------------------ set-up per experience

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Keep the labelled rows for stage 3, the rows of domain 0 for stages 1 and 2."""
        super().train_dataset_adaptation(**kwargs)
        self._rows = split_rows(self.adapted_dataset)
        check_experience(self.model, self._rows, self.experience.current_experience)
        self.adapted_dataset = self._rows.labelled

    def model_adaptation(self, model: Any = None) -> Any:
        """Let heads grow, as every Avalanche strategy does."""
        with listed_classes(self.experience):
            return super().model_adaptation(model)

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Make stage 3's loader (Avalanche's own) and that of stages 1 and 2."""
        assert self._rows is not None
        labelled, self.adapted_dataset = self.adapted_dataset, self._rows.target
        super().make_train_dataloader(**kwargs)
        self._target_loader = self.parallel.shared(self.dataloader)
        self.adapted_dataset = labelled
        super().make_train_dataloader(**kwargs)
        self.dataloader = self.parallel.shared(self.dataloader)

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Make Avalanche's loader; with several processes each evaluates on everything."""
        super().make_eval_dataloader(**kwargs)
        self.dataloader = self.parallel.whole(self.dataloader)

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Cover the trainable parameters, S's never; the stages' optimisers follow."""
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimized_param_id = update_optimizer(
            self.optimizer,
            trainable,
            self.optimized_param_id,
            reset_state=reset_optimizer_state,
            remove_params=kwargs.get("remove_params", False),
            verbose=kwargs.get("verbose_optimizer", False),
        )
        decoder = [p for p in self.model.decoder_parameters().values() if p.requires_grad]
        target = [p for p in self.model.target_parameters().values() if p.requires_grad]
        self._source_optimizer.prepare(decoder)
        self._coupled_optimizer.prepare(
            chain(decoder, target) if self.plan.decoder_in_stage2 else target
        )
        self.parallel.cover(self.model)

    def _before_training_exp(self, **kwargs: Any) -> None:
        # A stop asked for in the last epoch would otherwise silence the next experience.
        self._stop_training = False
        super()._before_training_exp(**kwargs)
        assert self._rows is not None
        _, classes = self.model.target.measure(self.model.input_shape)
        check_classes(self._rows, classes, self.experience.current_experience)
        if not self.model.source_statistics_fitted:
            self._fit_source_statistics()
        if not self._warm:
            if self.model.source is not None and self.warmup_epochs:
                self._pass(Stage.SOURCE, self.warmup_epochs, **kwargs)
            self._warm = True

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self._rows = None
        self._seen = None
        self._target_loader = []

    @torch.no_grad()
    def _fit_source_statistics(self) -> None:
        features = []
        for batch in self._target_loader:
            batch = self._placed(batch)
            self._checked_images(batch[0])
            features.append(self._source_features(batch).float())
        rows = torch.cat(features)
        # A small last mini-batch may have left a row here that is another process's.
        kept = len(rows) if share_of(self._target_loader) else len(rows) - 1
        self.model.fit_source_statistics(self.parallel.rows(rows, kept))

    # ------------------------------------------------------------------ one round

    def training_epoch(self, **kwargs: Any) -> None:
        """Run one round: the stages of Algorithm 1, or the variant's merged steps."""
        self._round = Means()
        if self.plan.merged is not None:
            with self._running(Stage.MERGED, **kwargs):
                for target, labelled in self._paired_batches():
                    if self._stop_training:
                        return
                    self.mbatch = labelled
                    self._merged_iteration(target, **kwargs)
        elif self.alternate == "epoch":
            self._round_by_epochs(**kwargs)
        else:
            self._round_by_iterations(**kwargs)

    def _round_by_epochs(self, **kwargs: Any) -> None:
        if self._trains_source_stage:
            self._pass(Stage.SOURCE, self.stage_epochs[0], **kwargs)
            self._refresh("GFI1")
        self._pass(Stage.COUPLED, self.stage_epochs[1], **kwargs)
        self._refresh("GFI2", "GFI3")
        with self._running(Stage.CLASSIFY, **kwargs):
            batches = parts(self.dataloader, self.stage_epochs[2], self.accumulate)
            for self.mbatch, part in batches:
                if self._stop_training and part.first:
                    return
                self._classification_iteration(part, **kwargs)

    def _round_by_iterations(self, **kwargs: Any) -> None:
        for target, labelled in self._paired_batches():
            if self._stop_training:
                return
            if self._trains_source_stage:
                with self._running(Stage.SOURCE, **kwargs):
                    self._source_step(target, **kwargs)
            with self._running(Stage.COUPLED, **kwargs):
                self._coupled_step(target, **kwargs)
            with self._running(Stage.CLASSIFY, **kwargs):
                self.mbatch = labelled
                self._classification_iteration(**kwargs)
        self._refresh("GFI1", "GFI2", "GFI3")

    @property
    def _trains_source_stage(self) -> bool:
        return self.plan.stage1_in_rounds and self.model.source is not None

    def _pass(self, stage: Stage, passes: int, **kwargs: Any) -> None:
        """Run stage 1 or 2: some passes over the rows of domain 0."""
        if stage is Stage.COUPLED and self.fixed_goal and self.model.source is not None:
            self._goal.renew(self.model)
        with self._running(stage, **kwargs):
            for batch, part in parts(self._target_loader, passes, self.accumulate):
                if self._stop_training and part.first:
                    return
                step = self._source_step if stage is Stage.SOURCE else self._coupled_step
                step(self._placed(batch), part, **kwargs)

    @contextmanager
    def _running(self, stage: Stage, **kwargs: Any) -> Iterator[None]:
        self.stage = stage
        trigger_plugins(self, "before_stage", **kwargs)
        yield
        trigger_plugins(self, "after_stage", **kwargs)
        self.coupled = None

    def _paired_batches(self) -> Iterator[tuple[list[Tensor], Any]]:
        """Target batches beside labelled ones, for as long as the longer of the two lasts."""
        loaders = (self._target_loader, self.dataloader)
        steps = max(len(loader) for loader in loaders)  # type: ignore[arg-type]
        for target, labelled in zip(*(cycle(loader, steps) for loader in loaders), strict=True):
            yield self._placed(target), labelled

    # ------------------------------------------------------------------ GFI

    def _refresh(self, *names: str) -> None:
        if self._stop_training:
            return
        assert self._rows is not None
        self.allocation.refresh(
            names,
            self.model,
            self.clock.train_exp_epochs,
            len(self._rows.target),
            lambda rows: (self._target_rows(rows), self._target_tasks(rows)),
            self.parallel.processes,
        )

    def _target_rows(self, indices: Sequence[int]) -> Sample:
        assert self._rows is not None, "target images are there during training only"
        dataset = self._rows.target.eval()
        rows = [dataset[i] for i in indices]
        images = torch.stack([torch.as_tensor(row[0]) for row in rows]).to(self.device)
        labels = torch.tensor([int(row[1]) for row in rows], device=self.device)
        features = None
        if self._rows.has_features and self.model.source is not None:
            features = torch.stack([row[FEATURES_INDEX] for row in rows]).to(self.device)
        return Sample(self._checked_images(images), labels, features)

    def _target_tasks(self, indices: Sequence[int]) -> Tensor:
        assert self._rows is not None
        labels = getattr(self._rows.target, "targets_task_labels", None)
        found = [0 if labels is None else int(labels[i]) for i in indices]
        return torch.tensor(found, device=self.device)

    def target_sample(self, count: int) -> Sample:
        """Give the first target rows of the experience in training.

        Without training augmentation; fewer where the experience has fewer.

        :return: images ``(count, C, H, W)``, labels (-1: unknown), and S's features where the
            benchmark has them.
        """
        assert self._rows is not None, "target images are there during training only"
        return self._target_rows(range(min(count, len(self._rows.target))))

    @torch.no_grad()
    def labelled_features(self, source: Encoder) -> tuple[Tensor, Tensor]:
        """Give S's features of the experience's target rows that have a label, and the labels.

        Without training augmentation.

        :param source: S; it runs where the benchmark has no features of it.
        :return: ``(N, dim)`` and ``(N,)``; N is 0 where no target row has a label.
        """
        assert self._rows is not None, "target images are there during training only"
        known = [i for i, label in enumerate(self._rows.target.targets) if int(label) >= 0]
        features, labels = [torch.zeros(0, source.dim)], [torch.zeros(0, dtype=torch.long)]
        stored = self._rows.has_features and features_are_of(self._rows.target, source)
        size = max(64, self.train_mb_size)
        for start in range(0, len(known), size):
            found = self._target_rows(known[start : start + size])
            given = found.features if stored else None
            rows = source(found.images) if given is None else given
            features.append(rows.float().cpu())
            labels.append(found.labels.cpu())
        return torch.cat(features), torch.cat(labels)
