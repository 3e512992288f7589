"""StreamingRidge: new classes on a frozen encoder, where StreamingLDA stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import (
    SingleDatasetDataLoader,
    collate_from_data_or_kwargs,
)
from avalanche.core import BasePlugin
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from avalanche_cetl.common.described import Described
from avalanche_cetl.common.labels import features_in
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.features.attach import check_source
from avalanche_cetl.models.ridge import RidgeHead


class StreamingRidge(SupervisedTemplate, Described):
    """A :class:`RidgeHead` on a frozen encoder, as a strategy of Avalanche's.

    It is used as Avalanche's ``StreamingLDA`` is: no optimiser, one pass over each experience, no
    memory of old images. The head after some experiences is the ridge regression of all their rows,
    whatever their order. Stored features (:func:`with_source_features`) are read where the
    experience has them; the encoder then does not run. Rows with a label below 0 are passed over.

    The head is solved when outputs are asked for after its sums changed. In training, outputs (and
    metrics of them) are those of the head as it was when the experience began: the rows are tested,
    then learnt.

    :param encoder: frozen, ``(N, C, H, W) -> (N, D)``: an :class:`Encoder`, or any module, which
        runs in eval mode and without gradient.
    :param head: default: ``RidgeHead(encoder.dim)``.
    :param criterion: of the loss that metrics show; nothing is trained by it.
    :param train_mb_size: rows of a mini-batch; it changes the speed, not the head.
    :param device: of all; ``eval_mb_size``, ``plugins``, ``evaluator`` and ``eval_every`` are as in
        every Avalanche strategy.
    :ivar model: ``nn.Sequential(encoder, head)``: images to logits.
    :ivar head: the head. ``SoftTargets(source=encoder, head=strategy.head)`` lets another network
        learn from it.
    :raises ValueError: without ``head`` for an encoder that does not say its ``dim``; in training
        for stored features of another encoder, for ``train_epochs`` other than 1, and for plugins
        with a memory of old images: rows would count more than once.
    """

    adapted_dataset: Any
    dataloader: Any
    mbatch: Any

    def __init__(
        self,
        encoder: nn.Module,
        head: RidgeHead | None = None,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        train_mb_size: int = 64,
        eval_mb_size: int = 64,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        **kwargs: Any,
    ):
        if head is None:
            if not isinstance(encoder, Encoder):
                raise ValueError(
                    f"a {type(encoder).__name__} does not say how many features it gives: give "
                    "head=RidgeHead(in_features), or wrap it in a ModuleEncoder."
                )
            head = RidgeHead(encoder.dim)
        super().__init__(
            model=nn.Sequential(encoder, head),
            optimizer=None,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=1,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=list(plugins or ()),
            evaluator=evaluator,
            eval_every=eval_every,
            **kwargs,
        )

    @property
    def encoder(self) -> nn.Module:
        """Return the frozen encoder."""
        found: nn.Module = self.model[0]
        return found

    @property
    def head(self) -> RidgeHead:
        """Return the head."""
        found: RidgeHead = self.model[1]
        return found

    def model_adaptation(self, model: Any = None) -> Any:
        """Adapt the head: an output for every class of the experience."""
        model = self.model if model is None else model
        classes = getattr(self.experience, "classes_in_this_experience", None)
        if classes is None:  # of a benchmark without a timeline of classes
            classes = {int(label) for label in self.experience.dataset.targets}
        model[1].grow(1 + max(classes, default=-1))
        return model

    def make_optimizer(self, **kwargs: Any) -> None:
        """Do nothing: there is no optimiser."""

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Adapt the head, and check what rows come from; there is no optimiser."""
        self._check_rows_count_once()
        self.model = self.model_adaptation().to(self.device)
        self._check_features("the training experience")

    def eval_dataset_adaptation(self, **kwargs: Any) -> None:
        """Take the experience's rows, and check their stored features."""
        super().eval_dataset_adaptation(**kwargs)
        self._check_features("the experience in evaluation")

    def make_train_dataloader(self, shuffle: bool = False, **kwargs: Any) -> None:
        """Read every row once, in order; Avalanche's loader repeats rows of tasks with fewer."""
        settings = self._obtain_common_dataloader_parameters(
            batch_size=self.train_mb_size, shuffle=False, **kwargs
        )
        collate_from_data_or_kwargs(self.adapted_dataset, settings)
        self.dataloader = SingleDatasetDataLoader(self.adapted_dataset, **settings)

    def training_epoch(self, **kwargs: Any) -> None:
        """Add the rows to the head's sums, once they have been tested."""
        before = self.head.classifier()
        for batch in self.dataloader:
            if self._stop_training:
                break
            labelled = batch[1] >= 0
            if not labelled.any():
                continue
            self.mbatch = [part[labelled] for part in batch]
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_forward(**kwargs)
            features = self._features()
            self.mb_output = before(features.float())
            self._after_forward(**kwargs)
            self.loss = self._make_empty_loss() + self.criterion()
            self._before_update(**kwargs)
            self.head.update(features, self.mb_y)
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)

    def forward(self) -> Tensor:
        """Return the logits of the mini-batch, ``(N, K)``."""
        found: Tensor = self.head(self._features())
        return found

    @torch.no_grad()
    def _features(self) -> Tensor:
        stored = None
        if isinstance(self.encoder, Encoder):
            stored = features_in(self.adapted_dataset, self.mbatch)
        if stored is not None:
            return stored
        found: Tensor = self.encoder.eval()(self.mb_x)
        return found

    def _check_rows_count_once(self) -> None:
        if self.train_epochs != 1:
            raise ValueError(
                f"train_epochs={self.train_epochs}: StreamingRidge makes one pass over each "
                "experience, because a row that is read again would count again. Leave it at 1."
            )
        for plugin in self.plugins:
            if hasattr(plugin, "storage_policy") or hasattr(plugin, "mem_size"):
                raise ValueError(
                    f"{type(plugin).__name__} shows rows of earlier experiences again, and they "
                    "would count again: the head's sums hold them already. Leave the plugin out."
                )

    def _check_features(self, where: str) -> None:
        if isinstance(self.encoder, Encoder):
            check_source(self.adapted_dataset, self.encoder, where)
