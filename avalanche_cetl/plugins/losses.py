"""Plugins that add a loss: a name, a weight and a loss; everything else is the base class's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from avalanche_cetl.common.arguments import check_weight
from avalanche_cetl.common.inputs import own_copy
from avalanche_cetl.common.rows import features_in
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.features.attach import features_are_of
from avalanche_cetl.plugins.contract import CETLPlugin, training_of

#: The rows that a loss reads: those of stage 3, or those of stage 2.
Rows = Literal["labelled", "target"]
#: The same where a loss tells target rows without a label from the others.
AnyRows = Literal["labelled", "target", "unlabelled"]


class LossRows(NamedTuple):
    """The N rows of a mini-batch that a loss reads.

    :ivar images: ``(N, C, H, W)``.
    :ivar features: S's ``(N, dim)``; None where they are not there.
    :ivar logits: T2's ``(N, K)``.
    :ivar labels: ``(N,)``, -1 where there is none.
    :ivar tasks: task labels, ``(N,)``.
    """

    images: Tensor
    features: Tensor | None
    logits: Tensor
    labels: Tensor
    tasks: Tensor


class LossPlugin(CETLPlugin):
    """Base class: adds a weighted loss to that of a step, records it, and shares it out.

    A subclass has a ``name`` and a :meth:`loss`::

        class Entropy(LossPlugin):
            name = "L_entropy"

            def loss(self, strategy, batch):
                return torch.distributions.Categorical(logits=batch.logits).entropy().mean()

    Works with every variant of :class:`CETLStrategy`, and with any other strategy that trains
    on rows ``(image, label, ...)``.

    :param weight: of the loss, finite and >= 0; the loss is recorded without it.
    :param rows: ``"labelled"``: the rows of stage 3, part of L_c; ``"target"``: all target
        rows, with or without label, in stage 2. The merged variants read both in their one
        step; a stage of your own reads what it says, and T2 has to run there. Other strategies know
        ``"labelled"`` only.
    :raises ValueError: for a weight or rows out of range.
    """

    #: Name of the loss in ``round_losses`` and among the metrics.
    name = ""
    #: Whether the loss reads T2's logits; those of hidden layers do not.
    reads_logits = True
    #: Whether it takes part; those of a preset do where they fit the experience.
    enabled = True
    #: Values of ``rows`` that it takes; all but ``"labelled"`` are rows of stage 2.
    allowed_rows: tuple[str, ...] = get_args(Rows)

    def __init__(self, weight: float = 1.0, rows: AnyRows = "labelled"):
        super().__init__()
        check_weight("weight", weight)
        check_rows(rows, self.allowed_rows)
        self.weight, self.rows = float(weight), rows
        self._images: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the losses that it records."""
        return (self.name,)

    @property
    def active(self) -> bool:
        """Whether the loss is computed at all: not with a weight of 0."""
        return self.enabled and bool(self.weight)

    @property
    def teaches_without_labels(self) -> bool:
        """Whether T2's logits of rows without a label learn from it."""
        return self.reads_logits and self.rows != "labelled" and self.active

    def loss(self, strategy: Any, batch: LossRows) -> Tensor | None:
        """Return the loss, a scalar mean over the batch; None where there is none."""
        raise NotImplementedError

    def losses(self, strategy: Any, batch: LossRows) -> dict[str, tuple[float, Tensor]]:
        """Return weight and loss by name; for plugins with several losses."""
        found = self.loss(strategy, batch)
        return {} if found is None else {self.name: (self.weight, found)}

    def strength(self, strategy: Any) -> float:
        """Return a factor on all weights, for those that change while training goes on."""
        return 1.0

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Check that the strategy has the rows."""
        training = training_of(strategy)
        training.announce(self.names)
        if self.rows != "labelled" and not training.has_stages:
            raise ValueError(
                f"{type(strategy).__name__} has no stage 2; give {type(self).__name__} "
                "rows='labelled'."
            )

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the images: a stock strategy's network may write into its mini-batch."""
        if not training_of(strategy).has_stages:
            self._images = own_copy(strategy.mb_x)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the loss to the step's."""
        training = training_of(strategy)
        batch = self.read(strategy)
        self._images = None
        if batch is None or not self.active:
            return
        found = self.losses(strategy, batch)
        if not found:
            return
        added: Any = None
        for name, (weight, loss) in found.items():
            training.record_loss(name, loss, batch.images)
            added = weight * loss if added is None else added + weight * loss
        rows = "labelled" if self.rows == "labelled" else "target"
        share = training.row_share_of(rows) * self.strength(strategy)
        strategy.loss = strategy.loss + share * added

    def read(self, strategy: Any) -> LossRows | None:
        """Return the rows of the step that runs; None where it has none of this kind."""
        training = training_of(strategy)
        if self.rows != "labelled":
            step = training.coupled if "target" in training.reads else None
            if step is None:
                return None
            return LossRows(step.images, step.features, step.logits, step.labels, step.tasks)
        if "labelled" not in training.reads or strategy.mb_output is None:
            return None
        batch = strategy.mbatch
        features = features_in(strategy.adapted_dataset, batch)
        images = batch[0] if self._images is None else self._images
        return LossRows(images, features, strategy.mb_output, batch[1], batch[-1])


class DistillationPlugin(LossPlugin):
    """Base class of losses between S and T2.

    In strategies other than :class:`CETLStrategy`, ``source=`` gives S.

    :param weight: see :class:`LossPlugin`, as ``rows``.
    :param source: S, where the model is no ``CoupledModel``; default: the model's.
    """

    def __init__(self, weight: float, rows: AnyRows, source: Encoder | None = None):
        super().__init__(weight, rows)
        self._given = source
        self._reads_features: tuple[int, bool] | None = None  # of which experience, and whether

    def source(self, strategy: Any) -> Encoder:
        """Return S.

        :raises ValueError: when there is none.
        """
        found = self._given if self._given is not None else training_of(strategy).source
        if found is None:
            raise ValueError(
                f"{type(self).__name__} needs a source network: use a CoupledModel that has one, "
                "or give source=."
            )
        if self._given is not None:
            found.to(strategy.device)
        return found

    def read(self, strategy: Any) -> LossRows | None:
        """Return the rows, without features that are not of the ``source`` given here."""
        batch = super().read(strategy)
        if batch is None or batch.features is None or self._given is None:
            return batch
        experience = strategy.clock.train_exp_counter
        if self._reads_features is None or self._reads_features[0] != experience:
            models = training_of(strategy).source
            if isinstance(models, Encoder):  # a CoupledModel's features are its source's
                same = models is self._given or models.fingerprint() == self._given.fingerprint()
            else:
                same = features_are_of(strategy.adapted_dataset, self._given)
            self._reads_features = experience, same
        return batch if self._reads_features[1] else batch._replace(features=None)


def check_rows(rows: str, allowed: Sequence[str]) -> None:
    """Raise ValueError for rows that the plugin does not read."""
    if rows not in allowed:
        raise ValueError(f"rows={rows!r} is not known. Allowed: {', '.join(map(repr, allowed))}.")
