"""T2's logits of target rows, for what plugins teach: no decoder takes part."""

from __future__ import annotations

from torch import Tensor

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.stages.base import TrainingStage


class DirectStage(TrainingStage):
    """T2 reads target rows, with or without label; plugins with ``rows="target"`` add losses.

    It has no loss of its own, and T1 does not run.
    """

    kind = Stage.COUPLED
    trains = ("target",)

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Run T2 on a view of the images."""
        seen = networks.noisy(networks.view(batch.images))
        with networks.lone_sample(batch):
            networks.encode(seen, batch.tasks)
        return {}
