"""Distillation from S as plugins: the base class, and soft targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.common.inputs import own_copy
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.features import features_are_of, features_in
from avalanche_cetl.encoders.probe import linear_probe
from avalanche_cetl.training.checks import check_rows, check_weight
from avalanche_cetl.training.stages import CETLPlugin, Stage

ROWS = ("labelled", "target")
PROBE = "probe"


def soft_target_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(logits / T))``, mean over rows, in nats.

    Hinton, Vinyals and Dean 2015; the factor T^2 keeps the gradient's size as T changes.

    :param logits: the student's, ``(N, K)``.
    :param teacher: the teacher's, ``(N, K)``, taken as constant.
    :param temperature: T, > 0.
    :return: a scalar >= 0.
    """
    student = F.log_softmax(logits / temperature, 1)
    goal = F.log_softmax(teacher.detach() / temperature, 1)
    return temperature**2 * F.kl_div(student, goal, reduction="batchmean", log_target=True)


class DistilledRows(NamedTuple):
    """The rows that a loss reads: images, S's features where they are there, T2's logits."""

    images: Tensor
    features: Tensor | None
    logits: Tensor


class DistillationPlugin(CETLPlugin):
    """Base class: adds a weighted loss between S and T2 to the loss of a step.

    Works with every variant of :class:`CETLStrategy`, and with any other strategy that trains
    on rows ``(image, label, ...)``, where ``source=`` gives S.

    :param weight: of the loss, finite and >= 0; the loss is recorded without it.
    :param rows: ``"labelled"``: the rows of stage 3, part of L_c; ``"target"``: all target
        rows, with or without label, in stage 2. The merged variants read both in their one
        step; other strategies know ``"labelled"`` only.
    :param source: S, where the model is no ``CoupledModel``; default: the model's.
    :raises ValueError: for a weight or rows out of range.
    """

    #: Name of the loss in ``round_losses`` and among the metrics.
    name = ""

    def __init__(self, weight: float, rows: str, source: Encoder | None = None):
        super().__init__()
        check_weight("weight", weight)
        check_rows(rows, ROWS)
        self.weight, self.rows, self._given = float(weight), rows, source
        self._reads_features: tuple[int, bool] | None = None  # of which experience, and whether
        self._images: Tensor | None = None

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Check that the strategy has the rows."""
        if self.rows == "target" and not hasattr(strategy, "stage"):
            raise ValueError(
                f"{type(strategy).__name__} has no stage 2; give {type(self).__name__} "
                "rows='labelled'."
            )

    def loss(self, strategy: Any, batch: Any) -> Tensor | None:
        """Give the loss, a scalar mean over the batch; None where it has nothing to say."""
        raise NotImplementedError

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the images for S: a stock strategy's network may write into its mini-batch."""
        if not hasattr(strategy, "stage"):
            self._images = own_copy(strategy.mb_x)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the loss to the step's."""
        batch = self._batch(strategy)
        self._images = None
        if batch is None or not self.weight:
            return
        loss = self.loss(strategy, batch)
        if loss is None:
            return
        if hasattr(strategy, "record_loss"):
            strategy.record_loss(self.name, loss, batch.images)
        share = getattr(strategy, "row_share", 1.0)
        strategy.loss = strategy.loss + self.weight * share * loss

    def source(self, strategy: Any) -> Encoder:
        """Give S.

        :raises ValueError: when there is none.
        """
        found = self._given if self._given is not None else getattr(strategy.model, "source", None)
        if found is None:
            raise ValueError(
                f"{type(self).__name__} needs a source network: use a CoupledModel that has one, "
                "or give source=."
            )
        if self._given is not None:
            found.to(strategy.device)
        return found

    def _batch(self, strategy: Any) -> DistilledRows | None:
        stage = getattr(strategy, "stage", Stage.CLASSIFY)
        if self.rows == "target":
            step = getattr(strategy, "coupled", None)
            if stage not in (Stage.COUPLED, Stage.MERGED) or step is None:
                return None
            return DistilledRows(step.images, self._own(strategy, step.features), step.logits)
        if stage not in (Stage.CLASSIFY, Stage.MERGED):
            return None
        features = features_in(strategy.adapted_dataset, strategy.mbatch)
        images = strategy.mb_x if self._images is None else self._images
        return DistilledRows(images, self._own(strategy, features), strategy.mb_output)

    def _own(self, strategy: Any, features: Tensor | None) -> Tensor | None:
        """S's features; None where they are of another network than the ``source`` given here."""
        if features is None or self._given is None:
            return features
        experience = strategy.clock.train_exp_counter
        if self._reads_features is None or self._reads_features[0] != experience:
            models = getattr(strategy.model, "source", None)
            if isinstance(models, Encoder):  # a CoupledModel's features are its source's
                same = models is self._given or models.fingerprint() == self._given.fingerprint()
            else:
                same = features_are_of(strategy.adapted_dataset, self._given)
            self._reads_features = experience, same
        return features if self._reads_features[1] else None


class SoftTargets(DistillationPlugin):
    """T2's logits towards S's (Hinton, Vinyals and Dean 2015).

    Adds ``weight * T^2 KL(softmax(S / T) || softmax(T2 / T))``. S's logits are computed from
    its features where they are stored and S's classifier reads them, else from the images.

    :param temperature: T, > 0.
    :param weight: >= 0; Hinton's mixture is ``loss_weights=(1, 1 - a, 1)`` with ``weight=a``.
    :param rows: see :class:`DistillationPlugin`.
    :param source: see :class:`DistillationPlugin`.
    :param head: a classifier of S's features, ``(N, dim) -> (N, K)``, for an S whose classes are
        not T2's; default: S's own logits. ``"probe"``, with :class:`CETLStrategy`: a
        :func:`linear_probe`, fitted when an experience begins on S's features of the clean target
        images that have a label. It speaks of its classes alone: T2's logits of others are left
        out. Without S, or where a class of the experience has no labelled target image (domain
        adaptation), it would know too little, and the plugin adds nothing.
    :ivar classifier: the classifier of features that is in use; None: S's own, or no probe.
    :raises ValueError: for values out of range; in training when S has no logits, or not as
        many classes as T2.
    """

    name = "L_soft"

    def __init__(
        self,
        temperature: float = 4.0,
        weight: float = 1.0,
        *,
        rows: str = "labelled",
        source: Encoder | None = None,
        head: nn.Module | str | None = None,
    ):
        super().__init__(weight, rows, source)
        check_weight("temperature", temperature)
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} has to be > 0.")
        if isinstance(head, str) and head != PROBE:
            raise ValueError(f"head={head!r} is not known. Allowed: a module, {PROBE!r}, None.")
        self.temperature, self.head = float(temperature), head
        self.classifier: nn.Module | None = None if isinstance(head, str) else head
        self._classes = torch.zeros(0, dtype=torch.long)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Fit the probe."""
        if self.head != PROBE or not self.weight:
            return
        if not hasattr(strategy, "labelled_features"):
            raise ValueError(
                f"head={PROBE!r} goes with CETLStrategy; elsewhere give "
                "head=linear_probe(features, labels)."
            )
        self.classifier = None
        given = self._given if self._given is not None else strategy.model.source
        if given is None:
            return
        wanted = {int(label) for label in strategy.adapted_dataset.targets}
        features, labels = strategy.labelled_features(self.source(strategy))
        self._classes = labels.unique()
        if len(wanted) > 1 and set(self._classes.tolist()) == wanted:
            self.classifier = linear_probe(features, labels)

    def loss(self, strategy: Any, batch: DistilledRows) -> Tensor | None:
        """Give the loss of a mini-batch; None without a probe."""
        if self.head == PROBE:
            if self.classifier is None:
                return None
            known = self._classes.to(batch.logits.device)
            teacher = self.teacher_logits(strategy, batch)[:, known]
            return soft_target_loss(batch.logits[:, known], teacher, self.temperature)
        teacher = self.teacher_logits(strategy, batch)
        if teacher.shape != batch.logits.shape:
            raise ValueError(
                f"the source network has {teacher.shape[1]} classes and the target network "
                f"{batch.logits.shape[1]}; give head=, a classifier of S's features with T2's "
                "classes."
            )
        return soft_target_loss(batch.logits, teacher, self.temperature)

    @torch.no_grad()
    def teacher_logits(self, strategy: Any, batch: DistilledRows) -> Tensor:
        """Give S's logits of a mini-batch, ``(N, K)``."""
        source = self.source(strategy)
        features = batch.features
        if self.classifier is not None:
            self.classifier.to(strategy.device).eval()
            if features is None:
                features = source(batch.images)
            return self.classifier(features.to(batch.logits.dtype))
        return source.cheapest_logits(batch.images, features)
