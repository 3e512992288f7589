"""GFIPlugin: Generalized Fisher Information where EWCPlugin stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.benchmarks.utils import concat_datasets
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Cumulative, JointTraining
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from avalanche_cetl.allocation.parameters import unwrapped
from avalanche_cetl.allocation.penalty import WeightPenalty
from avalanche_cetl.allocation.proximal import check_optimizer, form_of
from avalanche_cetl.allocation.sample import Rows, TaskSample
from avalanche_cetl.allocation.seen import classes_of
from avalanche_cetl.common.validation import NonFiniteLossError
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.models.targets import reads_task_labels
from avalanche_cetl.plugins.base import training_of

# What no penalty on weights can do, and how to tell that a training asks for it.

#: Attributes of Avalanche's plugins and strategies that keep or generate old images.
_MEMORIES = ("storage_policy", "mem_size", "patterns_per_experience", "replay_size")

NEW_CLASSES = (
    "this experience brings classes that its head has not had before, and old ones are absent: "
    "cross entropy over all classes lowers the logits of the old ones, which no penalty on weights "
    "keeps from being lost. Train with the loss over the new classes alone (MaskedCrossEntropy("
    'mask="new") of avalanche.training.losses, as criterion and as plugin), replay some old images '
    "(ReplayPlugin), or keep a closed-form head on a frozen network (StreamingRidge, or "
    "Avalanche's StreamingLDA)."
)
BATCH_NORM = (
    "BatchNorm is in training mode while old tasks are held: its running statistics follow the new "
    "images, and what old tasks need of them is lost, which no penalty on weights prevents. Freeze "
    "it, by eval() on every BatchNorm layer before each epoch after the first experience, or use "
    "GroupNorm or LayerNorm."
)
#: Losses that do not read outputs as logits of one class among several.
_OTHER_LOSSES = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.GaussianNLLLoss, nn.PoissonNLLLoss,
    nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.MultiLabelMarginLoss,
)  # fmt: skip
_OTHER_FUNCTIONS = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.gaussian_nll_loss, F.poisson_nll_loss,
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss,
    F.multilabel_margin_loss,
)  # fmt: skip
OTHER_LOSS = (
    "the criterion is {loss}, and outputs are measured as class logits (likelihood='categorical'), "
    "of which a change that all share is free: give likelihood='bernoulli' where each output is a "
    "yes or no, 'gaussian' where it is a real value."
)
OTHER_NETWORK = (
    "this plugin has measured another network: a stream begins, and none of the weights that it "
    "holds is as it was when the last task was measured. It pulls the network towards those "
    "weights. Give each training a plugin of its own; where one goes on, load the network's "
    "weights with the plugin's state."
)
NOT_CALLED = (
    "{strategy} trained without asking for the penalty: it calls neither before_backward nor "
    "after_update of its plugins, so nothing was held. Use a strategy whose iterations have "
    "Avalanche's callbacks, such as Naive."
)


class GFIPlugin(WeightPenalty, SupervisedPlugin):
    """:class:`WeightPenalty` in any strategy of Avalanche's, where EWCPlugin stands.

    Its arguments are those of :class:`WeightPenalty`, the first four those of EWCPlugin. A task is
    an experience: at its end the Fisher information of the weights is measured, on its own images
    without training augmentation; at the start of the next it is gated, before the network grows
    its labels are drawn, and training pays the penalty. A network that was pretrained is remembered
    by hand, ``plugin.remember(model, images)``, before the first experience. In ``JointTraining``
    all experiences together are one task. The proximal step is taken where the optimiser has made
    its own: once for all mini-batches whose gradients are accumulated.

    Importances are kept under the number of the experience, from 0; those that were remembered by
    hand under -1, -2 and so on.

    :raises ValueError: also before an experience that has no images trains.
    """

    supports_distributed = True
    by_hand = False
    _warned: frozenset[str] = frozenset()
    _steps: _Steps | None = None

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw the old task's labels for new images, while the model is as it was."""
        if len(strategy.experience.dataset) == 0:
            raise ValueError(
                f"experience {strategy.clock.train_exp_counter} of the training has no images (its "
                "data set is empty), so there is nothing to measure or to train on; leave it out."
            )
        if self.settings.gates:
            self.draw(strategy.model, _rows(strategy))

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Gate the stored importances by what the old tasks and the new one share."""
        optimizer = strategy.optimizer
        check_optimizer(optimizer, form_of(self.penalty, optimizer), type(self).__name__)
        rows = _rows(strategy)
        with unwrapped(strategy.model) as network:
            if strategy.clock.train_exp_counter == 0 and self._holds_another(network):
                self._warn(OTHER_NETWORK)
            sample = rows.read([0, min(1, rows.length - 1)])
            self.measurer.check(network, sample)
            if self.dwa_lambda > 0 and self.likelihood == "categorical":
                self._check_loss(strategy, rows, sample, reads_task_labels(network))
        self.hold(strategy.model)

    def _holds_another(self, network: nn.Module) -> bool:
        """Return whether no weight is as it was when the last task was measured."""
        if not self.saved_params or self.dwa_lambda == 0:
            return False
        newest = self.saved_params[next(reversed(self.saved_params))]
        now = {name: p.detach() for name, p in network.named_parameters() if name in newest}
        same = (torch.equal(p.to(newest[name]), newest[name]) for name, p in now.items())
        return bool(now) and not any(same)

    def _check_loss(self, strategy: Any, rows: Rows, sample: TaskSample, by_head: bool) -> None:
        """Warn where the loss is none of class logits, or trains on new classes alone."""
        loss = loss_of(strategy)
        function = getattr(loss, "func", loss)  # of a functools.partial
        if isinstance(loss, _OTHER_LOSSES):
            self._warn(OTHER_LOSS.format(loss=type(loss).__name__))
        elif any(function is one for one in _OTHER_FUNCTIONS):
            self._warn(OTHER_LOSS.format(loss=function.__name__))
        seen, coming = self.measurer.seen.by_head, classes_of(rows, sample, by_head)
        if new_classes_are_lost(strategy, seen, coming):
            whole = getattr(strategy.experience, "origin_experience", None)
            if whole is not None:  # of a stream that brings it in pieces
                coming |= classes_of(_rows_of(whole.dataset, strategy.device), sample, by_head)
            if new_classes_are_lost(strategy, seen, coming):
                self._warn(NEW_CLASSES)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss, where that is its form."""
        first = strategy.clock.train_exp_iterations == 0 and self.importances
        if first and self.dwa_lambda > 0 and batch_norm_runs(strategy.model):
            self._warn(BATCH_NORM)
        if self.acts("loss", strategy.model, strategy.optimizer):
            with _located(strategy):
                strategy.loss += self.loss(strategy.model, strategy.optimizer)

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Look whether the optimiser steps: where gradients are accumulated, it does not always."""
        self._steps = _Steps(strategy.optimizer)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the proximal step that follows the optimiser's."""
        steps, self._steps = self._steps, None
        if steps is None or steps.made():
            self.step(strategy.model, strategy.optimizer)

    def hold_weights(self, strategy: Any, optimizer: Optimizer) -> None:
        """Take the proximal step at another optimiser's step sizes."""
        self.step(strategy.model, optimizer)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the Fisher information of the experience that ends."""
        held = self.importances and self.dwa_lambda > 0
        if held and strategy.clock.train_exp_iterations and not self.in_force.asked:
            self._warn(NOT_CALLED.format(strategy=type(strategy).__name__))
        with _located(strategy):
            number = strategy.clock.train_exp_counter
            self.remember(strategy.model, _rows(strategy), number=number)

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned |= {text}
            warn_caller(text)

    def _next_number(self) -> int:
        return min(self.store.numbers, default=0) - 1


class _Steps:
    """Whether an optimiser makes its step between two callbacks."""

    def __init__(self, optimizer: Any):
        self._made = False
        hook = getattr(optimizer, "register_step_post_hook", None)
        self._handle = None if hook is None else hook(self._note)

    def _note(self, *_: Any) -> None:
        self._made = True

    def made(self) -> bool:
        """Return whether it did, and look no longer; True for one that cannot be asked."""
        if self._handle is None:
            return True
        self._handle.remove()
        return self._made


def _rows(strategy: Any) -> Rows:
    """Return the rows of the experience without training augmentation, on the strategy's device.

    Joint training has those of all its experiences.
    """
    dataset = strategy.experience.dataset
    if isinstance(strategy, JointTraining):
        dataset = concat_datasets([one.dataset for one in vars(strategy)["_experiences"]])
    return _rows_of(dataset, strategy.device)


def _rows_of(dataset: Any, device: torch.device) -> Rows:
    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset

    def read(rows: list[int]) -> TaskSample:
        batch = dataset.collate_fn([dataset[row] for row in rows])
        tasks = torch.as_tensor(batch[-1])
        return TaskSample(*(part.to(device) for part in (batch[0], batch[1], tasks)))

    # Where these are not known, those of the drawn rows are.
    labels, tasks = (
        torch.as_tensor(list(getattr(dataset, name))) if hasattr(dataset, name) else None
        for name in ("targets", "targets_task_labels")
    )
    return Rows(len(dataset), read, labels, tasks)


@contextmanager
def _located(strategy: Any) -> Iterator[None]:
    """Say in errors of training that diverges where it was."""
    try:
        yield
    except NonFiniteLossError as problem:
        clock = strategy.clock
        problem.add_note(
            f"This was in epoch {clock.train_exp_epochs}, experience {clock.train_exp_counter}."
        )
        raise


def loss_of(strategy: Any) -> Any:
    """Return the criterion that a strategy was given; None: it has a loss of its own."""
    criterion = vars(strategy).get("_criterion")
    if training_of(strategy).has_stages:
        return getattr(criterion, "criterion", criterion)  # without what leaves unlabelled rows out
    plain = getattr(type(strategy), "criterion", None) is SupervisedProblem.criterion
    return criterion if plain else None


def new_classes_are_lost(
    strategy: Any, seen: Mapping[int, Iterable[int]], coming: Iterable[tuple[int, int]]
) -> bool:
    """Return whether a plain loss over all classes of a shared head trains on new ones alone.

    :param strategy: of the training.
    :param seen: the classes that have come before, by head.
    :param coming: the head and the class of all that come now.
    """
    loss = loss_of(strategy)
    if not isinstance(loss, nn.CrossEntropyLoss) and loss is not F.cross_entropy:
        return False
    if isinstance(strategy, Cumulative | JointTraining):
        return False  # they train on the old images too
    if any(hasattr(one, name) for one in (strategy, *strategy.plugins) for name in _MEMORIES):
        return False
    now: dict[int, set[int]] = {}
    for head, label in coming:
        now.setdefault(head, set()).add(label)
    old = {head: set(seen.get(head, ())) for head in now}
    return any(old[head] - own and own - old[head] for head, own in now.items() if old[head])


def batch_norm_runs(model: nn.Module) -> bool:
    """Return whether a BatchNorm of a network that keeps running statistics changes them."""
    return any(
        module.training and module.running_mean is not None
        for module in model.modules()
        if isinstance(module, _BatchNorm)
    )
