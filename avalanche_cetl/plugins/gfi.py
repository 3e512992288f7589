"""GFIPlugin: Generalized Fisher Information where EWCPlugin stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch.optim import Optimizer

from avalanche_cetl.allocation.parameters import unwrapped
from avalanche_cetl.allocation.penalty import WeightPenalty
from avalanche_cetl.allocation.proximal import check_optimizer
from avalanche_cetl.allocation.sample import Rows, TaskSample
from avalanche_cetl.common.errors import NonFiniteLossError


class GFIPlugin(WeightPenalty, SupervisedPlugin):
    """:class:`WeightPenalty` in any strategy of Avalanche's, where EWCPlugin stands.

    Its arguments are those of :class:`WeightPenalty`, the first four those of EWCPlugin. A task is
    an experience: at its end the Fisher information of the weights is measured, on its own images
    without training augmentation; at the start of the next it is gated, before the network grows
    its labels are drawn, and training pays the penalty. A network that was pretrained is remembered
    by hand, ``plugin.remember(model, images)``, before the first experience.

    Importances are kept under the number of the experience, from 0; those that were remembered by
    hand under -1, -2 and so on.

    :raises ValueError: also before an experience that has no images trains.
    """

    supports_distributed = True

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw the old task's labels for new images, while the model is as it was."""
        if len(strategy.experience.dataset) == 0:
            raise ValueError(
                f"experience {strategy.clock.train_exp_counter} of the training has no images (its "
                "data set is empty), so there is nothing to measure or to train on; leave it out."
            )
        self.draw(strategy.model, _rows(strategy))

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Gate the stored importances by what the old tasks and the new one share."""
        check_optimizer(strategy.optimizer, self.penalty, type(self).__name__)
        rows = _rows(strategy)
        with unwrapped(strategy.model) as network:
            self.measurer.check(network, rows.read([0, min(1, rows.length - 1)]))
        self.hold(strategy.model)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss, where that is its form."""
        if self.acts("loss", strategy.model):
            with _located(strategy):
                strategy.loss += self.loss(strategy.model)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the proximal step that follows the optimiser's."""
        self.step(strategy.model, strategy.optimizer)

    def hold_weights(self, strategy: Any, optimizer: Optimizer) -> None:
        """Take the proximal step at another optimiser's step sizes."""
        self.step(strategy.model, optimizer)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the Fisher information of the experience that ends."""
        with _located(strategy):
            number = strategy.clock.train_exp_counter
            self.remember(strategy.model, _rows(strategy), number=number)

    def _next_number(self) -> int:
        return min(self.importances, default=0) - 1


def _rows(strategy: Any) -> Rows:
    """Return the rows of the experience without training augmentation, on the strategy's device."""
    dataset = strategy.experience.dataset
    dataset = dataset.eval() if hasattr(dataset, "eval") else dataset

    def read(rows: list[int]) -> TaskSample:
        batch = dataset.collate_fn([dataset[row] for row in rows])
        tasks = torch.as_tensor(batch[-1])
        return TaskSample(*(part.to(strategy.device) for part in (batch[0], batch[1], tasks)))

    return Rows(len(dataset), read)


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
