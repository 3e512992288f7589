"""What Avalanche's metrics and progress bar are shown of a round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from avalanche.evaluation import metrics
from torch import Tensor

from avalanche_cetl.training.host import Host

#: Metrics of training that compare outputs with labels.
READ_LABELS = (
    metrics.MinibatchAccuracy,
    metrics.EpochAccuracy,
    metrics.RunningEpochAccuracy,
    metrics.MinibatchClassAccuracy,
    metrics.EpochClassAccuracy,
    metrics.RunningEpochClassAccuracy,
    metrics.MinibatchTopkAccuracy,
    metrics.EpochTopkAccuracy,
    metrics.RunningEpochTopkAccuracy,
)


class Iterations:
    """A data loader whose length is the number of training iterations of a round.

    Avalanche's progress bar takes its total from the loader's length. A round may pass over the
    loader several times, or over the longer of two.

    :param loader: the data loader.
    :param count: iterations of the round, >= 0.
    """

    def __init__(self, loader: Any, count: int):
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # a copy is asked for attributes before it has any
            raise AttributeError(name)
        return getattr(self.loader, name)


@contextmanager
def iterations_shown(host: Host, count: int) -> Iterator[None]:
    """Show the number of iterations of a round as the length of the strategy's loader.

    :param host: the strategy.
    :param count: of iterations in the round.
    """
    shown = Iterations(host.dataloader, count)
    host.dataloader = shown
    try:
        yield
    finally:
        if host.dataloader is shown:  # else a plugin has put another in its place
            host.dataloader = shown.loader


@contextmanager
def accuracy_of_labels(host: Host, labels: Tensor | None = None) -> Iterator[None]:
    """Leave out accuracies of training where there is no label: they would all be 0.

    Within a round alone, where no checkpoint is written: the list of metrics is whole in those.

    :param host: the strategy.
    :param labels: of a mini-batch; None: those of the experience count.
    """
    evaluator = host.evaluator
    whole = getattr(evaluator, "metrics", None)
    known = host.data.counts[1] and (labels is None or bool((labels >= 0).any()))
    if whole is None or known:
        yield
        return
    evaluator.metrics = [metric for metric in whole if not isinstance(metric, READ_LABELS)]
    try:
        yield
    finally:
        evaluator.metrics = whole
