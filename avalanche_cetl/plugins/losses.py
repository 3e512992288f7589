"""The base class of plugins that add a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from avalanche_cetl.common.arguments import check_weight
from avalanche_cetl.common.inputs import own_copy
from avalanche_cetl.common.rows import features_in
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.features.attach import features_are_of
from avalanche_cetl.plugins.contract import CETLPlugin, Stage

ROWS = ("labelled", "target")


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


def check_rows(rows: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless the plugin knows these rows."""
    if rows not in allowed:
        raise ValueError(f"rows={rows!r} is not known. Allowed: {', '.join(map(repr, allowed))}.")
