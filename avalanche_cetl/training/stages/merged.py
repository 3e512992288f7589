"""The merged step of eqs. 3 and 6: several losses, minimised together."""

from __future__ import annotations

from collections.abc import Iterator

from avalanche_cetl.plugins.contract import Stage
from avalanche_cetl.training.batch import Batch
from avalanche_cetl.training.stages.base import Callbacks, TrainingStage


class MergedStage(TrainingStage):
    """One step on the sum of other stages' losses; Avalanche's callbacks all fire.

    :param stages: the first one reads the labelled rows, the others the target rows beside them.
    :param trains: see :class:`TrainingStage`.
    """

    kind = Stage.MERGED
    reads = "labelled"
    beside = "target"
    callbacks = Callbacks.ALL

    def __init__(
        self, stages: tuple[TrainingStage, ...], trains: tuple[str, ...] | None = None
    ) -> None:
        self.stages, self.trains = stages, trains
        self.names = tuple(name for stage in stages for name in stage.names)

    def pieces(self, batch: Batch) -> Iterator[tuple[TrainingStage, Batch]]:
        """Yield the stages, each with the mini-batch of its rows."""
        for stage in self.stages:
            rows = batch if stage.reads == "labelled" else batch.beside
            assert rows is not None, "a merged step reads both kinds of rows"
            if batch.labelled or stage.reads != "labelled":
                yield stage, rows
