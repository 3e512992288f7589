"""R-EWC: EWC in rotated coordinates, one rotation of each layer for each task.

Liu, Masana, Herranz, van de Weijer, Lopez and Bagdanov (2018, "Rotate your networks"): a layer's
weights are written as ``U^T W V``, with the eigenvectors of the second moments of its inputs and of
the gradients of its outputs, on which the Fisher information is more nearly diagonal; EWC runs on
these coordinates. Here the weights stay as they are and the penalty is rotated, which is the same.
A convolution's rotation is of all its inputs at one position, where theirs is of channels alone.
They speak of one old task; here each old task is held in its own rotation, in full, so that the
cost of an iteration grows with their number, as that of EWC's separate form does.
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.losses import MaskedCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from avalanche_cetl.information import KroneckerBasis, fisher_information, kronecker_basis

#: More than any layer here has: the rotation is whole.
WHOLE = 10_000


class RotatedEWC(SupervisedPlugin):
    """EWC's penalty in rotated coordinates, added to the loss.

    :param strength: factor of half the sum of squares, as in EWC.
    """

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength
        self.tasks: list[tuple[dict[str, Tensor], dict[str, Tensor], KroneckerBasis]] = []

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Measure rotation and Fisher information of a task that ends, on all its images."""
        rows = strategy.experience.dataset.eval()  # without augmentation
        x, y = next(iter(DataLoader(rows, len(rows), collate_fn=_first_two)))
        model, masked = strategy.model, isinstance(strategy._criterion, MaskedCrossEntropy)

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            if masked:  # over the classes of the experience, as in training
                hidden = torch.full(outputs.shape[1:], -1e9)
                hidden[list(strategy.experience.classes_in_this_experience)] = 0.0
                outputs = outputs + hidden
            return F.cross_entropy(outputs, labels, reduction="none")

        basis = kronecker_basis(model, x, loss, targets=y, rank=WHOLE)
        fisher = fisher_information(model, x, loss, targets=y, basis=basis)
        with torch.no_grad():
            self.tasks.append((fisher, coordinates(model, basis), basis))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add what all old tasks hold."""
        for fisher, anchors, basis in self.tasks:
            now = coordinates(strategy.model, basis)
            for name, own in fisher.items():
                apart = (now[name] - anchors[name]).square()
                strategy.loss += self.strength / 2 * (own * apart).sum()


def coordinates(model: nn.Module, basis: KroneckerBasis) -> dict[str, Tensor]:
    """Return the weights in the rotated coordinates, those without a rotation as they are."""
    params = dict(model.named_parameters())
    found: dict[str, Tensor] = {n: p.clone() for n, p in params.items() if n not in basis.folded}
    return found | {name: layer.rotate(params) for name, layer in basis.items()}


def _first_two(rows: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([row[0] for row in rows]), torch.tensor([int(row[1]) for row in rows])
