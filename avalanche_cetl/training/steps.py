"""One mini-batch of each stage: its losses (eqs. 2 to 6), its penalty, its step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import trigger_plugins
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.allocation.allocation import Allocation
from avalanche_cetl.common.modes import lone_sample
from avalanche_cetl.common.rows import FEATURES_INDEX, Rows
from avalanche_cetl.plugins.contract import CoupledStep, Stage
from avalanche_cetl.training.checks import check_finite_images, check_finite_loss
from avalanche_cetl.training.goal import FixedGoal
from avalanche_cetl.training.optimizers import StageOptimizer
from avalanche_cetl.training.parallel import DataParallel, share_of
from avalanche_cetl.training.records import Means
from avalanche_cetl.training.switches import WHOLE, Part, Passes, casting, layout
from avalanche_cetl.training.variants import Plan, Variant


class StageSteps(SupervisedTemplate):
    """What :class:`CETLStrategy` does with a mini-batch in each stage."""

    variant: Variant
    plan: Plan
    loss_weights: dict[str, float]
    input_noise: float
    augment: Callable[[Tensor], Tensor] | None
    fixed_goal: bool
    _goal: FixedGoal
    parallel: DataParallel
    passes: Passes
    precision: str
    channels_last: bool
    _target_loader: Iterable[Any]
    _share_now: float = 1.0
    stage: Stage
    coupled: CoupledStep | None
    allocation: Allocation
    _round: Means
    _rows: Rows | None
    _seen: tuple[Tensor, Tensor] | None
    _noise: torch.Generator
    _source_optimizer: StageOptimizer
    _coupled_optimizer: StageOptimizer

    def _placed(self, batch: Iterable[Tensor]) -> list[Tensor]:
        """Give a mini-batch of target rows where and as the networks read it."""
        moved = [part.to(self.device, non_blocking=True) for part in batch]
        return layout(moved, self.channels_last)

    def _unpack_minibatch(self) -> None:
        super()._unpack_minibatch()
        layout(self.mbatch, self.channels_last)

    def forward(self) -> Tensor:
        """Give T2's logits, in float32, as Avalanche's loops ask for them."""
        with casting(self.precision, self.device):
            if self.is_training and self.passes.compiled:
                return self.passes.logits(self.model, self.mb_x, self.mb_task_id).float()
            return super().forward().float()

    def _computed(self, loss: Callable[[], Tensor]) -> Tensor:
        """Compute the loss of a step in the precision, and over the processes, that are set."""

        def cast() -> Tensor:
            with casting(self.precision, self.device):
                return loss()

        return self.parallel.step(cast)

    def _source_step(self, batch: list[Tensor], part: Part = WHOLE, **kwargs: Any) -> None:
        x = batch[0]
        if part.first:
            self.optimizer.zero_grad()
        self._share_now = share_of(self._target_loader)

        def whole() -> Tensor:
            with lone_sample(self.model, len(x)):
                loss = F.mse_loss(self._reconstruct_source(batch).float(), x)
            self.record_loss("L_rs", loss, x)
            counted = self.loss_weights["L_rs"] * self.row_share * loss
            return counted + self._penalty("GFI2", "DWA2", len(x))

        self.loss = self._computed(whole)
        if self.loss.requires_grad:  # a frozen T1 has nothing to learn here
            (self.loss * part.weight).backward()
            if part.last:
                self._source_optimizer.step()
        if part.last:
            trigger_plugins(self, "after_step", **kwargs)

    def _source_features(self, batch: list[Tensor]) -> Tensor:
        """S's features of a mini-batch: stored, or run once though several stages read them."""
        assert self.model.source is not None and self._rows is not None
        if self._rows.has_features:
            return batch[FEATURES_INDEX]
        x = batch[0]
        if self._seen is None or self._seen[0] is not x:
            self._seen = (x, self.model.source_features(x))
        return self._seen[1]

    def _reconstruct_source(self, batch: list[Tensor]) -> Tensor:
        code = self.model.source_code(features=self._source_features(batch))
        return self.passes.decode(self.model.decoder, code)

    def _coupled_step(self, batch: list[Tensor], part: Part = WHOLE, **kwargs: Any) -> None:
        self.mbatch = batch
        x = self.mb_x
        if part.first:
            self.optimizer.zero_grad()
        self._share_now = share_of(self._target_loader)

        def whole() -> Tensor:
            loss, self.mb_output = self._coupled_loss(batch)
            self.loss = self._make_empty_loss()
            counted = self.loss_weights["L_rt"] * self.row_share * loss
            self.loss += counted + self._penalty("GFI1", "DWA1", len(x))
            self._before_backward(**kwargs)
            return self.loss

        self.loss = self._computed(whole)
        self._check_finite("loss of stage 2 with penalties", self.loss, x)
        (self.loss * part.weight).backward()
        if part.last:
            self._coupled_optimizer.step()
            trigger_plugins(self, "hold_weights", optimizer=self._coupled_optimizer.optimizer)
            trigger_plugins(self, "after_step", **kwargs)

    def _coupled_loss(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """L_rt and T2's logits; the goal T1(S(x)) is that of the clean image, detached."""
        x = batch[0]
        features, goal, goal_hidden = None, x, None
        if self.model.source is not None:
            features = self._source_features(batch)
            with torch.no_grad():
                if self.fixed_goal:
                    code = self._goal.code(features)
                    goal, goal_hidden = self._decode(code, self._goal.decoder)
                else:
                    code = self.model.source_code(features=features)
                    goal, goal_hidden = self._decode(code, self.model.decoder)
        seen = self._view(x)
        if self.input_noise > 0:
            keep = torch.rand(x.shape[0], 1, *x.shape[2:], generator=self._noise)
            seen = seen * (keep.to(x.device) >= self.input_noise)
        with lone_sample(self.model, len(x)):
            code, logits = self.passes.encode(self.model, seen, batch[-1])
            logits = logits.float()
            reconstruction, hidden = self._decode(code, self.model.decoder)
        reconstruction, goal = reconstruction.float(), goal.float()
        loss = F.mse_loss(reconstruction, goal)
        self.record_loss("L_rt", loss, x)
        self.coupled = CoupledStep(
            x,
            features,
            goal,
            reconstruction,
            logits,
            goal_hidden or [],
            hidden,
            batch[1],
            batch[-1],
        )
        return loss, logits

    def _view(self, x: Tensor) -> Tensor:
        """Give what T2 sees of a mini-batch of training images."""
        if self.augment is None:
            return x
        view = self.augment(x)
        if view.shape != x.shape:
            raise ValueError(
                f"augment= changed a mini-batch of shape {tuple(x.shape)} to {tuple(view.shape)}."
            )
        return layout([view], self.channels_last)[0]

    def _decode(self, code: Tensor, decoder: Any) -> tuple[Tensor, list[Tensor]]:
        """Run T1; its hidden layers come along where a plugin reads them."""
        if any(getattr(plugin, "reads_decoder_hidden", False) for plugin in self.plugins):
            image, hidden = self.passes.decode_hidden(decoder, code)
            return image, [layer.float() for layer in hidden]
        return self.passes.decode(decoder, code), []

    def _classification_iteration(self, part: Part = WHOLE, **kwargs: Any) -> None:
        """Avalanche's training iteration, with DWA3 in the loss."""

        def extra() -> Tensor:
            return self._penalty("GFI3", "DWA3", len(self.mb_x))

        self._iteration(self.optimizer_step, extra, part, **kwargs)

    def _merged_iteration(self, target: list[Tensor], **kwargs: Any) -> None:
        """One step on a weighted sum of losses: eq. 6 (joint), or eq. 3 (two_step)."""
        with_source = "L_rs" in (self.plan.merged or ()) and self.model.source is not None

        def extra() -> Tensor:
            x = target[0]
            self._share_now = share_of(self._target_loader)
            total, _ = self._coupled_loss(target)
            total = self._share("L_rt") * self.row_share * total
            if with_source:
                with lone_sample(self.model, len(x)):
                    loss = F.mse_loss(self._reconstruct_source(target).float(), x)
                self.record_loss("L_rs", loss, x)
                total = total + self._share("L_rs") * self.row_share * loss
            return total

        step = self.optimizer_step if self.plan.decoder_in_stage2 else self._step_target_only
        self._iteration(step, extra, **kwargs)

    def _step_target_only(self) -> None:
        for parameter in self.model.decoder_parameters().values():
            parameter.grad = None
        self.optimizer_step()

    def _iteration(
        self,
        step: Callable[[], Any],
        extra: Callable[[], Tensor],
        part: Part = WHOLE,
        **kwargs: Any,
    ) -> None:
        self._unpack_minibatch()
        self.mbatch[0] = self._view(self.mb_x)
        self._before_training_iteration(**kwargs)
        if part.first:
            self.optimizer.zero_grad()

        def whole() -> Tensor:
            self._share_now = share_of(self.dataloader)
            self.loss = self._make_empty_loss()
            self._before_forward(**kwargs)
            with lone_sample(self.model, len(self.mb_x)):
                self.mb_output = self.forward()
            self._after_forward(**kwargs)
            loss = self.criterion()
            self.record_loss("L_c", loss, self.mb_x)
            self.loss += self._share("L_c") * self.row_share * loss + extra()
            self._before_backward(**kwargs)
            return self.loss

        self.loss = self._computed(whole)
        self._check_finite(f"loss of {self.stage.value} with penalties", self.loss, self.mb_x)
        shown, self.loss = self.loss, self.loss * part.weight
        self.backward()
        self.loss = shown
        self._after_backward(**kwargs)
        if part.last:
            self._before_update(**kwargs)
            step()
            self._after_update(**kwargs)
        with self._whole_batch():
            self._after_training_iteration(**kwargs)

    @contextmanager
    def _whole_batch(self) -> Iterator[None]:
        """Show metrics labels, tasks, outputs and loss of the whole mini-batch."""
        if self.parallel.alone:
            yield
            return
        batch, output, loss = self.mbatch, self.mb_output, self.loss
        assert isinstance(output, Tensor)
        count = len(output) if share_of(self.dataloader) else 0
        labels, tasks = (self.parallel.rows(batch[i], count) for i in (1, -1))
        self.mbatch = [batch[0], labels, *batch[2:-1], tasks]
        self.mb_output, self.loss = self.parallel.rows(output, count), self.parallel.mean(loss)
        try:
            yield
        finally:
            self.mbatch, self.mb_output, self.loss = batch, output, loss

    @property
    def row_share(self) -> float:
        """What a plugin's mean over the rows of a step is to be multiplied by.

        1 for one process, and where a mini-batch splits evenly over several.
        """
        return self._share_now

    def _share(self, name: str) -> float:
        """Weight of a loss: lambda_i; in eq. 3 those of L_c and L_rt sum to one."""
        weight = self.loss_weights[name]
        if self.variant is Variant.TWO_STEP:
            weight /= self.loss_weights["L_c"] + self.loss_weights["L_rt"]
        return weight

    def _penalty(self, importance: str, name: str, rows: int) -> Tensor:
        """DWA with the latest importance of that name; 0 before there is one."""
        penalty = self.allocation.penalty(importance, self.model)
        if penalty is None:
            return torch.zeros((), device=self.device)
        self._round.add(name, float(penalty.detach()), self._counted(rows))
        return penalty

    # ------------------------------------------------------------------ what must not pass

    def record_loss(self, name: str, loss: Tensor, x: Tensor) -> None:
        """Take a loss of a mini-batch into the round's mean of that name.

        For plugins that add a loss of their own; it then stands in ``round_losses``.

        :param loss: a scalar, the mean over the batch, without its weight.
        :param x: the mini-batch's images.
        :raises NonFiniteLossError: when it is NaN or infinite.
        """
        self._check_finite(name, loss, x)
        self._round.add(name, float(loss.detach()), self._counted(len(x)))

    def _counted(self, rows: int) -> int:
        """Rows that count: none in a process for which a mini-batch has no row."""
        return rows if self.row_share else 0

    def _check_finite(self, name: str, loss: Tensor, x: Tensor) -> None:
        clock = self.clock
        where = (self.stage.value, clock.train_exp_epochs, clock.train_exp_counter)
        check_finite_loss(name, loss, x, *where)

    def _checked_images(self, x: Tensor) -> Tensor:
        check_finite_images(x, self.clock.train_exp_epochs, self.clock.train_exp_counter)
        return x
