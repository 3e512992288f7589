"""What losses of images without a label share: which rows count, a ramp, and a prior of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, get_args

import torch
from torch import Tensor

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.plugins.base import Strategy, training_of
from avalanche_cetl.plugins.losses import AnyRows, LossPlugin

#: Weight in the prior of a class that no row has, beside 1 of each other class.
ABSENT = 1e-3

#: About the share of the rows that each class has; None: even classes.
Prior: TypeAlias = Sequence[float] | Tensor | None


def ramp(done: int, length: int) -> float:
    """Return the factor on a weight after so many rounds, in [exp(-5), 1]."""
    return math.exp(-5 * (1 - done / length) ** 2) if done < length else 1.0


def parse_prior(prior: Sequence[float] | Tensor) -> tuple[float, ...]:
    """Return the numbers of a prior over their sum.

    :raises ValueError: unless they are finite and > 0, before and after.
    """
    message = (
        f"prior={prior!r} has to be a row of finite numbers > 0, one for each class: about the "
        "share of the rows that it has. For a class that may be absent give a small number, such "
        "as 0.001."
    )
    try:
        values = torch.as_tensor(prior, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(message) from error
    shares = values / values.sum()
    positive = bool((values > 0).all() and (shares > 0).all() and shares.isfinite().all())
    if values.ndim != 1 or not len(values) or not positive:
        raise ValueError(message)
    return tuple(shares.tolist())


def present_prior(present: Sequence[int], classes: int) -> Prior:
    """Return even shares of the classes that rows have, and ``ABSENT`` of that for the others.

    :param present: class indices; none: nothing is known of them.
    :param classes: K, the network's outputs.
    :return: K numbers; None where no class is known to be absent.
    """
    if not present or len(present) >= classes:
        return None
    shares = torch.full((classes,), ABSENT)
    shares[list(present)] = 1.0
    return shares


def log_prior(prior: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Return the logarithms of the prior's shares, ``(K,)``, where and as another tensor is.

    :param prior: K numbers > 0; their sum is made 1.
    :param like: ``(..., K)``.
    :raises ValueError: for wrong numbers, or when they are not K.
    """
    shares = parse_prior(prior)
    if len(shares) != like.shape[-1]:
        raise ValueError(
            f"prior has {len(shares)} numbers and the network {like.shape[-1]} outputs; give one "
            "number for each output."
        )
    return torch.tensor(shares, dtype=torch.float64).log().to(like)


class UnlabelledPlugin(LossPlugin):
    """Base class of losses that read no label.

    Means over rows are those of one mini-batch, in one process.

    :param weight: see :class:`LossPlugin`.
    :param rows: ``"target"``: all rows of stage 2 (or of the merged step); ``"unlabelled"``: those
        of them without a label; ``"labelled"``: see :class:`LossPlugin`.
    :param rampup_rounds: rounds of an experience over which the weights rise from exp(-5) to 1
        as ``exp(-5 (1 - t)^2)`` does (Laine and Aila 2017, arXiv 1610.02242), >= 0.
    :param prior: K numbers > 0, about the share of the rows that each class has. None: even over
        the classes that labelled rows of the experience have, in either domain, and a thousandth
        of that for T2's other outputs; even over all outputs where there is no labelled row, and in
        strategies other than :class:`CETLStrategy`. Give ``[1.0] * K`` for even over all always.
    :ivar prior: the same, with sum 1; None.
    :raises ValueError: for values out of range.
    """

    allowed_rows: tuple[str, ...] = get_args(AnyRows)
    default_rows: AnyRows = "unlabelled"

    def __init__(self, weight: float, rows: AnyRows | None, rampup_rounds: int, prior: Prior):
        super().__init__(weight, rows)
        if rampup_rounds < 0:
            raise ValueError(f"rampup_rounds={rampup_rounds} has to be >= 0.")
        self.rampup_rounds = rampup_rounds
        self.prior = None if prior is None else parse_prior(prior)

    def strength(self, strategy: Strategy) -> float:
        """Return the factor on the weights, which rises over the rounds of an experience."""
        return ramp(strategy.clock.train_exp_epochs, self.rampup_rounds)

    def prior_of(self, strategy: Strategy, logits: Tensor) -> Prior:
        """Return the prior of T2's classes in the experience; None: even."""
        if self.prior is not None:
            return self.prior
        return present_prior(training_of(strategy).labelled_classes, logits.shape[1])

    def counted(self, batch: Batch) -> Tensor:
        """Return which rows count, ``(N,)``, bool."""
        if self.rows == "unlabelled":
            return batch.labels < 0
        return torch.ones(len(batch.logits), dtype=torch.bool, device=batch.logits.device)

    def over_counted(self, loss: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Return a loss of the logits of the rows that count, times their share of the rows.

        Zero where no row counts.
        """
        if self.rows != "unlabelled":
            return loss(batch.logits)
        counted = self.counted(batch)
        if not counted.any():
            return batch.logits.new_zeros(())
        return loss(batch.logits[counted]) * counted.float().mean()
