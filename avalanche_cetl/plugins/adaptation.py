"""Losses of domain adaptation that read T2's logits of unlabelled images, as plugins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.validation import check_positive, check_weight
from avalanche_cetl.plugins.base import Strategy
from avalanche_cetl.plugins.losses import AnyRows
from avalanche_cetl.plugins.unlabelled import Prior, UnlabelledPlugin, log_prior
from avalanche_cetl.plugins.views import balance_loss


def information_maximization_loss(
    logits: Tensor, prior: Prior = None, balance: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Entropy of a row's class probabilities, mean over rows, plus :func:`balance_loss`, in nats.

    Low where the network is sure of each row, and of all classes in their turn. With even classes
    and ``balance=1`` it is log K minus the mutual information of rows and classes that Liang, Hu
    and Feng 2020 (SHOT, arXiv 2002.08546) maximise: their L_ent + L_div, and log K.

    :param logits: ``(N, K)``; the probabilities are ``softmax(logits / temperature)``.
    :param prior: K numbers > 0, about the share of the rows that each class has; None: even.
    :param balance: of the divergence of the mean probabilities from the prior, >= 0.
    :param temperature: > 0.
    :return: a scalar >= 0; at most log K with even classes and ``balance`` up to 1.
    :raises ValueError: for a prior that is not K numbers > 0.
    """
    scaled = logits / temperature
    logs = F.log_softmax(scaled, 1)
    entropy = -(logs.exp() * logs).sum(1).mean()
    return entropy + balance * balance_loss(scaled, prior)


def minimum_class_confusion_loss(
    logits: Tensor, temperature: float = 2.5, prior: Prior = None
) -> Tensor:
    """How much a class is predicted beside others in the same rows, mean over classes.

    Jin, Wang, Long and Wang 2020 (arXiv 1912.03699). With ``Y = softmax(logits / temperature)``
    and a diagonal W of the rows' weights ``1 + exp(-entropy)``, each row of the class confusion
    matrix ``Y^T W Y`` is divided by its sum; the loss is the mean over its K rows of the sum off
    the diagonal. W is constant, without a gradient, as in the paper's code. In
    ``skada.deep.losses.mcc_loss`` a gradient flows through W and the temperature is 1 by default;
    the value is the same, but for the 1e-7 that it adds before the logarithm.

    :param logits: ``(N, K)``.
    :param temperature: > 0.
    :param prior: K numbers > 0, with sum 1 the weights of the classes in the mean; None: 1 / K.
    :return: a scalar in [0, 1].
    :raises ValueError: for a prior that is not K numbers > 0.
    """
    # Row k of the matrix over its sum is a mean of the rows of Y with weights w_i Y_ik, so its sum
    # off the diagonal is that mean of 1 - Y_ik. Taking these weights as a softmax over i keeps a
    # class finite whose probabilities all underflow, where the quotient would be 0 / 0. A constant
    # factor of w, such as the paper's for a mean of 1, cancels.
    logs = F.log_softmax(logits / temperature, 1)
    with torch.no_grad():
        entropy = -(logs.exp() * logs).sum(1, keepdim=True)
        log_weights = torch.log1p(torch.exp(-entropy))
    confusion = ((logs + log_weights).softmax(0) * -torch.expm1(logs)).sum(0)
    if prior is None:
        return confusion.mean()
    return (log_prior(prior, confusion).exp() * confusion).sum()


class InformationMaximization(UnlabelledPlugin):
    """T2 sure of each image, and of all classes in their turn (Liang, Hu and Feng 2020).

    Adds ``weight`` times :func:`information_maximization_loss`, beside L_rt in stage 2, or beside
    L_c with ``rows="labelled"``; ``round_losses`` has it as ``L_im``.

    :param weight: >= 0.
    :param balance: >= 0; with 0, all images may end in one class.
    :param temperature: > 0.
    :param rampup_rounds: see :class:`UnlabelledPlugin`.
    :param rows: ``"target"``: all rows of stage 2 (or of the merged step); ``"unlabelled"``: those
        of them without a label, and the loss is multiplied by their share of the mini-batch, 0
        where there are none; ``"labelled"``: the rows of stage 3, and with any other strategy its
        mini-batches, whatever their labels are.
    :param prior: K numbers > 0, about the share of the rows that each class has; None: even over
        the classes that labelled rows have, see :class:`UnlabelledPlugin`.
    :raises ValueError: for values out of range; in training, when T2 has not K outputs, or for
        rows that the strategy has not.
    """

    name = "L_im"

    def __init__(
        self,
        weight: float = 1.0,
        balance: float = 1.0,
        temperature: float = 1.0,
        rampup_rounds: int = 0,
        rows: AnyRows | None = None,
        prior: Prior = None,
    ):
        super().__init__(weight, rows, rampup_rounds, prior)
        check_weight("balance", balance)
        check_positive("temperature", temperature)
        self.balance, self.temperature = float(balance), float(temperature)

    def loss(self, strategy: Strategy, batch: Batch) -> Tensor:
        """Return the loss of a mini-batch."""
        prior = self.prior_of(strategy, batch.logits)
        return self.over_counted(
            lambda z: information_maximization_loss(z, prior, self.balance, self.temperature), batch
        )


class MinimumClassConfusion(UnlabelledPlugin):
    """No two classes in the same images (Jin, Wang, Long and Wang 2020).

    Adds ``weight`` times :func:`minimum_class_confusion_loss`, beside L_rt in stage 2, or beside
    L_c with ``rows="labelled"``; ``round_losses`` has it as ``L_mcc``.

    :param weight: >= 0.
    :param temperature: > 0.
    :param rampup_rounds: see :class:`UnlabelledPlugin`.
    :param rows: see :class:`InformationMaximization`.
    :param prior: K numbers > 0: how much each class counts; None: evenly, of the classes that
        labelled rows have, see :class:`UnlabelledPlugin`.
    :raises ValueError: for values out of range; in training, when T2 has not K outputs, or for
        rows that the strategy has not.
    """

    name = "L_mcc"

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 2.5,
        rampup_rounds: int = 0,
        rows: AnyRows | None = None,
        prior: Prior = None,
    ):
        super().__init__(weight, rows, rampup_rounds, prior)
        check_positive("temperature", temperature)
        self.temperature = float(temperature)

    def loss(self, strategy: Strategy, batch: Batch) -> Tensor:
        """Return the loss of a mini-batch."""
        prior = self.prior_of(strategy, batch.logits)
        return self.over_counted(
            lambda z: minimum_class_confusion_loss(z, self.temperature, prior), batch
        )
