"""SoftTargets: T2's logits towards S's."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.labels import ABSENT
from avalanche_cetl.common.modes import without_autocast
from avalanche_cetl.common.validation import check_positive, order_of_0_2
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.centroids import class_centroids
from avalanche_cetl.encoders.probe import LinearProbe, linear_probe
from avalanche_cetl.encoders.scores import Scores
from avalanche_cetl.models.targets import mask_values
from avalanche_cetl.plugins.base import Strategy, training_of
from avalanche_cetl.plugins.losses import DistillationPlugin, Rows

logger = logging.getLogger(__name__)

PROBE, BEST, CENTROIDS = "probe", "best", "centroids"
#: A logit whose probability is 0, finite in half precision too.
_NOTHING = -3e4
#: How far, relatively, half precision may put a mask value off.
_ROUNDING = 0.01


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


def _names_as_many(source: Encoder, features: Tensor, labels: Tensor, probe: LinearProbe) -> bool:
    """Return whether S's own classifier is right on labelled rows as often as a probe.

    :param features: S's, ``(N, dim)``, of the rows.
    :param probe: fitted on them; rows that were held out count. Where none was, S's classifier has
        to be nearer to naming all of them right than to chance.
    """
    classes = source.num_classes
    if classes is None or int(labels.max()) >= classes or not source.classifies_features:
        return False
    device = next(iter(source.parameters()), features).device
    named = source.cheapest_logits(features, features.to(device)).argmax(1).cpu()
    own = float((named == labels).float().mean())
    held_out = probe.held_out
    needed = held_out.accuracy if held_out else (1 + 1 / len(labels.unique())) / 2
    logger.info(
        "S's own classifier is right on %.1f %% of %d labelled rows; %s",
        100 * own, len(labels), "it teaches" if own >= needed else "a linear probe teaches",
    )  # fmt: skip
    return own >= needed


class SoftTargets(DistillationPlugin):
    r"""T2's logits towards S's (Hinton, Vinyals and Dean 2015).

    Adds ``weight`` times :math:`T^2 \, KL(softmax(S / T), softmax(T_2 / T))`. S's logits are
    computed from its features where they are stored and S's classifier reads them, else from the
    images.

    :param weight: >= 0; Hinton's mixture is ``loss_weights=(1, 1 - a, 1)`` with ``weight=a``.
    :param temperature: T, > 0.
    :param rows: see :class:`DistillationPlugin`.
    :param source: see :class:`DistillationPlugin`.
    :param head: a classifier of S's features, ``(N, dim) -> (N, K)``, for an S whose classes are
        not T2's; default: S's own logits. Of probabilities, its or S's, the logits are taken
        (:class:`~avalanche_cetl.encoders.scores.Scores`). Classes that a
        :func:`linear_probe` or a :class:`RidgeHead` has no row of (logit -30) are left out, and
        so are classes that T2 masks, as Avalanche's ``IncrementalClassifier`` those not yet seen.
        ``"probe"``, with
        :class:`CETLStrategy`: a :func:`linear_probe`, fitted when an experience begins on S's
        features of the clean target images that have a label. It has these classes alone: T2's
        logits of others are left out. Without S, or where a class of the experience has no
        labelled target image (domain adaptation), it would know too little, and the plugin adds
        nothing. ``"best"``: S's own classifier where it names the labelled target images right at
        least as often as such a probe those that were held out from it; else the probe.
        ``"centroids"``, with :class:`CETLStrategy` and an S whose classes are T2's:
        :func:`~avalanche_cetl.encoders.centroids.class_centroids` of its features of the clean
        target images, which read no label. On images of a domain that S has not learnt they were
        right more often than S's own logits, which teach where the two agree on less than two
        thirds of the images.
    :param anneal: whether the weight falls in a straight line over the rounds of an experience, to
        0 in the last (teacher annealing: Clark et al. 2019, arXiv 1907.04829). T2 then starts from
        what S knows, and may end where S is wrong and its other losses are right.
    :ivar classifier: the classifier of features that is in use; None: S's own, or no probe.
    :raises ValueError: for values out of range; in training when S has no logits, or not as
        many classes as T2.
    """

    name = "L_soft"

    @order_of_0_2("temperature", "weight")
    def __init__(
        self,
        weight: float = 1.0,
        *,
        temperature: float = 4.0,
        rows: Rows | None = None,
        source: Encoder | None = None,
        head: nn.Module | Literal["probe", "best", "centroids"] | None = None,
        anneal: bool = False,
    ):
        super().__init__(weight, rows, source)
        check_positive("temperature", temperature)
        if isinstance(head, str) and head not in (PROBE, BEST, CENTROIDS):
            raise ValueError(
                f"head={head!r} is not known. Allowed: a module, {PROBE!r}, {BEST!r}, "
                f"{CENTROIDS!r}, None."
            )
        self.temperature, self.head, self.anneal = float(temperature), head, bool(anneal)
        self.classifier: nn.Module | None = None if isinstance(head, str) else head
        self._own = False  # whether S's own classifier stands in for a probe
        self._classes = torch.zeros(0, dtype=torch.long)
        self._scores = Scores("head=")

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Fit the probe, or the centroids."""
        if not isinstance(self.head, str) or not self.active:
            return
        training = training_of(strategy)
        if not training.has_stages:
            raise ValueError(
                f"head={self.head!r} goes with CETLStrategy; elsewhere give "
                "head=linear_probe(features, labels)."
            )
        self.classifier, self._own = None, False
        if self._given is None and training.source is None:
            return
        source = self.source(strategy)
        if self.head == CENTROIDS:
            self.classifier = class_centroids(*training.target_logits(source))
            self._own = self.classifier is None
            return
        wanted = {int(label) for label in strategy.adapted_dataset.targets}
        features, labels = training.labelled_features(source)
        self._classes = labels.unique()
        if len(wanted) > 1 and set(self._classes.tolist()) == wanted:
            probe = linear_probe(features, labels)
            self._own = self.head == BEST and _names_as_many(source, features, labels, probe)
            self.classifier = None if self._own else probe

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of a head that was given, for checkpoints; a probe is fitted again."""
        given = isinstance(self.head, nn.Module)
        return {"head": dict(self.head.state_dict()) if given else None}  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        if isinstance(self.head, nn.Module) and state["head"] is not None:
            self.head.load_state_dict(state["head"])

    def strength(self, strategy: Strategy) -> float:
        """Return the factor on the weight; with ``anneal`` it falls from 1 to 0."""
        last = int(strategy.train_epochs) - 1
        if not self.anneal or last < 1:
            return 1.0
        result: float = max(0.0, 1 - strategy.clock.train_exp_epochs / last)
        return result

    def loss(self, strategy: Strategy, batch: Batch) -> Tensor | None:
        """Return the loss of a mini-batch; None without a probe."""
        if isinstance(self.head, str) and self.classifier is None and not self._own:
            return None
        if self.head in (PROBE, BEST):
            known = self._classes.to(batch.logits.device)
            teacher = self.teacher_logits(strategy, batch)[:, known]
            return soft_target_loss(batch.logits[:, known], teacher, self.temperature)
        teacher = self.teacher_logits(strategy, batch)
        if teacher.shape != batch.logits.shape:
            raise ValueError(
                f"the source network has {teacher.shape[1]} classes and the target network "
                f"{batch.logits.shape[1]}; give head=, a classifier of S's features with T2's "
                "classes, or a target network with S's classes (a head that grows has as many "
                "outputs as it was made with, until labels of more classes come)."
            )
        # Of a class that the head has no row of it knows nothing. T2's masked outputs are
        # constants, towards which the loss would push all the others.
        unknown = (teacher == ABSENT).all(0)
        for value in mask_values(strategy.model):
            masked = batch.logits.new_tensor(value)
            unknown = unknown | batch.logits.isclose(masked, rtol=_ROUNDING, atol=0).all(0)
        logits, goal = (one.masked_fill(unknown, _NOTHING) for one in (batch.logits, teacher))
        return soft_target_loss(logits, goal, self.temperature)

    @torch.no_grad()
    def teacher_logits(self, strategy: Strategy, batch: Batch) -> Tensor:
        """Return S's logits of a mini-batch, ``(N, K)``."""
        source = self.source(strategy)
        features = batch.features
        if self.classifier is not None:
            self.classifier.to(strategy.device).eval()
            if features is None:
                features = source(batch.images)
            # A head's logits may be in the hundreds, where half precision rounds to whole numbers.
            like = next(self.classifier.parameters(), features)
            with without_autocast(features):
                return self._scores.read(self.classifier, features.to(like.dtype))
        return source.cheapest_logits(batch.images, features)
