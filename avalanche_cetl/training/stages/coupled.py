"""Stage 2: T1 and T2 learn to give, from T2's code, what T1 gives from S's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.plugins.contract import CoupledStep, Stage
from avalanche_cetl.training.batch import Batch
from avalanche_cetl.training.networks import Networks
from avalanche_cetl.training.stages.base import Payment, TrainingStage


class CoupledStage(TrainingStage):
    """Stage 2: ``L_rt = mean |T1(T2(x)) - T1(S(x))|^2`` (eq. 4), over batch and pixels.

    The goal T1(S(x)) is that of the clean image, and constant; without S it is x itself. T2 sees
    the image through ``augment=`` and ``input_noise=``.

    :param trains: ``("decoder", "target")``, or ``("target",)`` with a T1 that is fixed.
    """

    kind = Stage.COUPLED
    names = ("L_rt",)
    pays = Payment("GFI1", "DWA1")
    measures = ("GFI2", "GFI3")

    def __init__(self, trains: tuple[str, ...] = ("decoder", "target")):
        self.trains = trains

    def losses(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return L_rt; the batch then has what was computed in ``coupled``."""
        goal, goal_hidden = networks.goal(batch)
        seen = networks.noisy(networks.view(batch.images))
        with networks.lone_sample(batch):
            code, logits = networks.encode(seen, batch.tasks)
            logits = logits.float()
            reconstruction, hidden = networks.decode(code)
        reconstruction, goal = reconstruction.float(), goal.float()
        batch.coupled = CoupledStep(
            images=batch.images,
            features=batch.features,
            goal=goal,
            reconstruction=reconstruction,
            logits=logits,
            goal_hidden=goal_hidden,
            hidden=hidden,
            labels=batch.labels,
            tasks=batch.tasks,
        )
        return {"L_rt": F.mse_loss(reconstruction, goal)}
