"""The merged step of eqs. 3 and 6: several losses, minimised together."""

from __future__ import annotations

from collections.abc import Iterator

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.stages.base import Callbacks, TrainingStage


class MergedStage(TrainingStage):
    r"""One step on the sum of other stages' losses; Avalanche's callbacks all fire.

    The weights of the losses are ``loss_weights``; variant ``"joint"`` minimises

    .. math:: \lambda_1 L_{rs} + \lambda_2 L_c + \lambda_3 L_{rt} \quad \text{(eq. 6)}

    and ``"two_step"``, with :math:`\lambda = \lambda_2 / (\lambda_2 + \lambda_3)`,

    .. math:: \lambda L_c + (1 - \lambda) L_{rt} \quad \text{(eq. 3)}

    Where an experience has no labelled row, its steps are those of the target rows alone.

    :param stages: those of labelled rows first, then those of the target rows beside them.
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

    def pieces(self, batches: dict[str, Batch]) -> Iterator[tuple[TrainingStage, Batch]]:
        """Yield the stages, each with the mini-batch of its rows."""
        return ((stage, batches[stage.reads]) for stage in self.stages if stage.reads in batches)
