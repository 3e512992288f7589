"""Stage 1: T1 learns to reconstruct images from S's features."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.stages.base import Callbacks, Payment, TrainingStage


class SourceStage(TrainingStage):
    r"""Stage 1, eq. 2: :math:`L_{rs} = |T_1(S(x)) - x|^2`, mean over batch and pixels."""

    kind = Stage.SOURCE
    trains = ("decoder",)
    names = ("L_rs",)
    pays = Payment("GFI2", "DWA2")
    measures = ("GFI1",)
    callbacks = Callbacks.NONE
    needs_source = True

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return L_rs."""
        with networks.lone_sample(batch):
            image = networks.reconstruct_source(batch)
            return {"L_rs": F.mse_loss(image.float(), batch.images)}
