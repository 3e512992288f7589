"""Consistency between two views of an unlabelled image, as a plugin of stage 2."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.caches import copied, renew_caches
from avalanche_cetl.common.validation import check_weight
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Strategy, training_of
from avalanche_cetl.plugins.losses import AnyRows
from avalanche_cetl.plugins.unlabelled import Prior, UnlabelledPlugin, log_prior

#: The rows that views are compared on.
TargetRows = Literal["target", "unlabelled"]


def consistency_loss(
    logits: Tensor, goal: Tensor, threshold: float, counted: Tensor | None = None
) -> Tensor:
    """Squared difference of class probabilities, where the goal is sure of its class.

    Mean over all rows and classes; rows whose goal has no probability above the threshold
    count as zero (French, Mackiewicz and Fisher 2018).

    :param logits: ``(N, K)``.
    :param goal: logits ``(N, K)``, taken as constant.
    :param threshold: in [0, 1).
    :param counted: ``(N,)``, bool: rows that are False count as zero too. Default: all True.
    :return: a scalar in [0, 2 / K].
    """
    wanted = goal.detach().softmax(1)
    sure = wanted.amax(1) > threshold
    if counted is not None:
        sure = sure & counted
    sure = sure.to(logits.dtype).unsqueeze(1)
    return ((logits.softmax(1) - wanted).square() * sure).mean()


def balance_loss(logits: Tensor, prior: Prior = None) -> Tensor:
    """Kullback-Leibler divergence of the mean class probabilities from the prior, in nats.

    Keeps consistency from putting all images into a few classes.

    :param logits: ``(N, K)``.
    :param prior: K numbers > 0, about the share of the rows that each class has; None: even.
    :return: a scalar in [0, log K]; with a prior of sum 1 at most -log of its least number.
    :raises ValueError: for a prior that is not K numbers > 0.
    """
    mean = logits.softmax(1).mean(0).clamp_min(1e-8)
    if prior is None:
        logs = -torch.tensor(float(logits.shape[1])).log().to(mean)
    else:
        logs = log_prior(prior, mean)
    return (mean * (mean.log() - logs)).sum()


class ViewConsistency(UnlabelledPlugin):
    """T2's classes for a view of a target image towards its mean teacher's for the clean image.

    Self-ensembling (Tarvainen and Valpola 2017; for domain adaptation French, Mackiewicz and
    Fisher 2018), beside L_rt in stage 2. The view is T2's input there (``augment=``,
    ``input_noise=``); the mean teacher is T2 with the running mean (EMA) of its weights, in eval
    mode, and reads no label. Adds ``weight`` times :func:`consistency_loss` and ``balance`` times
    :func:`balance_loss`; ``round_losses`` has both, as ``L_view`` and ``L_balance``.

    :param weight: >= 0.
    :param decay: of the running mean, in [0, 1); 0 is T2 itself.
    :param threshold: in [0, 1): how sure the teacher has to be.
    :param balance: >= 0; for target data whose classes are about as frequent as in ``prior``.
    :param rampup_rounds: rounds of an experience over which both weights rise from exp(-5) to 1
        as ``exp(-5 (1 - t)^2)`` does (Laine and Aila 2017, arXiv 1610.02242), >= 0: what the
        teacher is sure of before it has learnt much may be wrong, and is not unlearnt.
    :param rows: ``"target"``: all rows of stage 2; ``"unlabelled"``: those of them without a label.
        The others count as zero in the consistency, and not at all in the balance, which weighs
        as much as the share of the unlabelled rows.
    :param prior: of the balance: K numbers > 0, about the share of the rows that each class has;
        None: even over the classes that labelled rows have, see :class:`UnlabelledPlugin`.
    :raises ValueError: for values out of range; in training without a ``CoupledModel``, or when T2
        has not K outputs.
    """

    name = "L_view"
    names = ("L_view", "L_balance")
    allowed_rows = get_args(TargetRows)
    default_rows: AnyRows = "target"

    def __init__(
        self,
        weight: float = 10.0,
        decay: float = 0.99,
        threshold: float = 0.9,
        balance: float = 0.05,
        rampup_rounds: int = 0,
        rows: TargetRows | None = None,
        prior: Prior = None,
    ):
        super().__init__(weight, rows, rampup_rounds, prior)
        check_weight("balance", balance)
        for name, value in (("decay", decay), ("threshold", threshold)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} is outside [0, 1).")
        self.decay = float(decay)
        self.threshold, self.balance = float(threshold), float(balance)
        self._teacher: nn.Module | None = None

    @property
    def active(self) -> bool:
        """Whether the losses are computed: with any weight, so that they are recorded."""
        return self.enabled

    def before_training(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Check the network."""
        if not (training_of(strategy).has_stages and isinstance(strategy.model, CoupledModel)):
            raise ValueError("ViewConsistency needs CETLStrategy and a CoupledModel.")
        super().before_training(strategy, *args, **kwargs)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Start from T2 as it is: an experience may bring new classes."""
        self._teacher = copied(_target_of(strategy)).eval().requires_grad_(False)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Free the mean teacher."""
        self._teacher = None

    def state_dict(self) -> dict[str, Any]:
        """Return the mean teacher's weights, for checkpoints."""
        return {"slow": None if self._teacher is None else dict(self._teacher.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them, where there is a teacher: within an experience."""
        if self._teacher is not None and state["slow"] is not None:
            self._teacher.load_state_dict(state["slow"])

    def losses(self, strategy: Strategy, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """Return consistency and balance of a mini-batch of stage 2, with their weights."""
        teacher: Any = self._teacher
        renew_caches(teacher)  # its weights have changed since its last pass
        with torch.no_grad():
            _, goal = teacher.encode(batch.images, batch.tasks)
        view = consistency_loss(batch.logits, goal, self.threshold, self.counted(batch))
        prior = self.prior_of(strategy, batch.logits)
        balance = self.over_counted(lambda logits: balance_loss(logits, prior), batch)
        return {"L_view": (self.weight, view), "L_balance": (self.balance, balance)}

    def after_step(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Follow T2 after a step of stage 2, or another that reads target rows."""
        if "target" in training_of(strategy).reads:
            self._follow(_target_of(strategy))

    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Follow T2 after a step of stage 3."""
        self._follow(_target_of(strategy))

    @torch.no_grad()
    def _follow(self, target: nn.Module) -> None:
        assert self._teacher is not None
        means = self._teacher.state_dict(keep_vars=True)
        followed = set()
        for name, value in target.state_dict(keep_vars=True).items():
            if id(means[name]) in followed:  # shared weights have several names
                continue
            followed.add(id(means[name]))
            if value.is_floating_point():
                means[name].lerp_(value, 1 - self.decay)
            else:
                means[name].copy_(value)


def _target_of(strategy: Strategy) -> nn.Module:
    assert isinstance(strategy.model, CoupledModel)  # checked before training
    return strategy.model.target
