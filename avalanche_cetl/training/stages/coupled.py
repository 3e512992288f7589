"""Stage 2: T1 and T2 learn to give, from T2's code, what T1 gives from S's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.stages.base import Payment, TrainingStage


class CoupledStage(TrainingStage):
    r"""Stage 2, eq. 5: :math:`L_{rt} = |T_1(T_2(x)) - T_1(S(x))|^2`, mean over batch and pixels.

    The reconstruction target T1(S(x)) is that of the clean image, and constant; without S it is x
    itself. T2 sees the image through ``augment=`` and ``input_noise=``.

    :param trains: ``("decoder", "target")``, or ``("target",)`` with a T1 that is fixed.
    """

    kind = Stage.COUPLED
    names = ("L_rt",)
    pays = Payment("GFI1", "DWA1")
    measures = ("GFI2", "GFI3")

    def __init__(self, trains: tuple[str, ...] = ("decoder", "target")):
        self.trains = trains

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return L_rt; the batch then has both reconstructions, and T1's hidden layers."""
        target, batch.hidden_target = networks.reconstruction_target(batch)
        seen = networks.noisy(networks.view(batch.images))
        with networks.lone_sample(batch):
            code, _ = networks.encode(seen, batch.tasks)
            reconstruction, batch.hidden = networks.decode(code)
        batch.reconstruction, batch.reconstruction_target = reconstruction.float(), target.float()
        return {"L_rt": F.mse_loss(batch.reconstruction, batch.reconstruction_target)}
