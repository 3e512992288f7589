"""Plugins that add a loss: a name, a weight and a loss; everything else is the base class's."""

from __future__ import annotations

from copy import copy
from typing import Any, Literal, get_args

from torch import Tensor

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.common.validation import check_choice, check_weight
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.encoders.base import check_frozen
from avalanche_cetl.encoders.origin import Origin
from avalanche_cetl.features.attach import check_source, features_are_of
from avalanche_cetl.plugins.base import CETLPlugin, Strategy, check_loss, training_of

#: The rows that a loss reads: those of stage 3, or those of stage 2.
Rows = Literal["labelled", "target"]
#: The same where a loss tells target rows without a label from the others.
AnyRows = Literal["labelled", "target", "unlabelled"]


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
        ``"labelled"`` only. None: the class's ``default_rows``.
    :raises ValueError: for a weight or rows out of range; in training where a stage ran T2 on
        another number of rows than its mini-batch has, and does not say which logits are theirs.
    """

    #: Name of the loss in ``round_losses`` and among the metrics.
    name = ""
    #: Whether the loss reads T2's logits; those of hidden layers do not.
    reads_logits = True
    #: Whether it takes part; those of a preset do where they fit the experience.
    enabled = True
    #: Values of ``rows`` that it takes; all but ``"labelled"`` are rows of stage 2.
    allowed_rows: tuple[str, ...] = get_args(Rows)
    #: The rows that it reads where none are given.
    default_rows: AnyRows = "labelled"

    def __init__(self, weight: float = 1.0, rows: AnyRows | None = None):
        super().__init__()
        check_weight("weight", weight)
        self.rows: AnyRows = self.default_rows if rows is None else rows
        check_choice("rows", self.rows, self.allowed_rows)
        self.weight = float(weight)
        self._images: tuple[Tensor, Tensor] | None = None  # of the mini-batch, and a copy

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

    def loss(self, strategy: Any, batch: Batch) -> Tensor | None:
        """Return the loss, a scalar mean over the batch; None where there is none."""
        raise NotImplementedError(f"{type(self).__name__} has no method loss(strategy, batch).")

    def losses(self, strategy: Any, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """Return weight and loss by name; for plugins with several losses."""
        loss = self.loss(strategy, batch)
        return {} if loss is None else {self.name: (self.weight, loss)}

    def strength(self, strategy: Strategy) -> float:
        """Return a factor on all weights, for those that change while training goes on."""
        return 1.0

    def before_training(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Check that the strategy has the rows."""
        training = training_of(strategy)
        training.announce(self.names)
        if self.rows != "labelled" and not training.has_stages:
            raise ValueError(
                f"{type(strategy).__name__} has no stage 2; give {type(self).__name__} "
                "rows='labelled'."
            )

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the images: a stock strategy's network may write into its mini-batch."""
        if not training_of(strategy).has_stages:
            self._images = strategy.mbatch[0], own_copy(strategy.mbatch[0])

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add the loss to the step's."""
        batch = self.read(strategy) if self.active else None
        self._images = None
        if batch is None:
            return
        added: Tensor | None = None
        learns = isinstance(batch.latest, Tensor) and batch.latest.requires_grad
        for name, (weight, loss) in self.losses(strategy, batch).items():
            check_loss(type(self).__name__, name, loss, learns)
            training_of(strategy).record_loss(name, loss, batch.images)
            added = weight * loss if added is None else added + weight * loss
        if added is not None:
            strategy.loss = strategy.loss + batch.share * self.strength(strategy) * added

    def read(self, strategy: Strategy) -> Batch | None:
        """Return the rows of the step that runs; None where it has none of this kind."""
        training = training_of(strategy)
        rows = "labelled" if self.rows == "labelled" else "target"
        batch = training.batch_of(rows) if rows in training.reads else None
        if batch is None or batch.latest is None:
            return None
        if self._images is not None:
            given, images = self._images
            if batch.images is given:  # else what came later gave the network other images
                batch.tensors[0] = images
        return batch


class DistillationPlugin(LossPlugin):
    """Base class of losses between S and T2.

    In strategies other than :class:`CETLStrategy`, ``source=`` gives S.

    :param weight: see :class:`LossPlugin`, as ``rows``.
    :param source: S, where the model is no ``CoupledModel``; default: the model's.
    :raises TypeError: for a source that is no encoder.
    :raises ValueError: for one that is not frozen.
    """

    def __init__(
        self, weight: float = 1.0, rows: AnyRows | None = None, source: Encoder | None = None
    ):
        super().__init__(weight, rows)
        if source is not None and not isinstance(source, Encoder):
            raise TypeError(
                f"source has to be an encoder, got {type(source).__name__}; wrap a module as "
                "ModuleEncoder(module), which freezes it and keeps it in evaluation mode."
            )
        if source is not None:
            check_frozen(source)
        self._given = source
        self._reads_features: tuple[int, bool] | None = None  # of which experience, and whether

    def before_training(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Check that the strategy has the rows; its data sets are looked at anew."""
        super().before_training(strategy, *args, **kwargs)
        self._reads_features = None

    def source(self, strategy: Strategy) -> Encoder:
        """Return S.

        :raises ValueError: when there is none.
        """
        if self._given is not None:
            return self._given.to(strategy.device)
        source: Encoder | None = training_of(strategy).source
        if source is None:
            raise ValueError(
                f"{type(self).__name__} needs a source network: use a CoupledModel that has one, "
                "or give source=."
            )
        return source

    def read(self, strategy: Strategy) -> Batch | None:
        """Return the rows, without features that are not of the ``source`` given here.

        :raises ValueError: where S is the model's and they are of another network.
        """
        batch = super().read(strategy)
        if batch is None or batch.features is None:
            return batch
        experience = strategy.clock.train_exp_counter
        if self._reads_features is None or self._reads_features[0] != experience:
            self._reads_features = experience, self._features_are_its(strategy, batch)
        if not self._reads_features[1]:
            batch = copy(batch)
            batch.features = None
        return batch

    def _features_are_its(self, strategy: Strategy, batch: Batch) -> bool:
        """Return whether the features of an experience are those of S.

        A strategy with stages has compared them with the model's source itself.
        """
        training = training_of(strategy)
        models, dataset = training.source, strategy.adapted_dataset
        if self._given is None:
            if not training.has_stages and isinstance(models, Encoder):
                where = f"experience {strategy.clock.train_exp_counter} of the training"
                check_source(dataset, models, where)
            return True
        if not training.has_stages or not isinstance(models, Encoder):
            return features_are_of(dataset, self._given)
        image = batch.images[0]
        return models is self._given or (
            Origin.of(models, image.shape, image.dtype).is_of(self._given)
        )
