"""The adapters of T1: from S's features, and from T2's code, to the code that the decoder reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avalanche_cetl.common.standardize import floored_deviation


class Standardize(nn.Module):
    """Standardise features with the mean and deviation of the target training data.

    The statistics are buffers, so a checkpoint keeps them. Until they are fitted the layer
    changes nothing.

    :param dim: number of features.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Compute mean and standard deviation of features ``(N, dim)``.

        Deviations have a floor, see :func:`avalanche_cetl.common.standardize.floored_deviation`;
        where no feature varies at all they count as 1.

        :raises ValueError: for a wrong width, no rows, or values that are not finite.
        """
        if features.dim() != 2 or features.shape[1] != len(self.mean) or not len(features):
            raise ValueError(
                f"expected source features (N, {len(self.mean)}), got {tuple(features.shape)}."
            )
        if not torch.isfinite(features).all():
            raise ValueError("the source network gave features that are not finite.")
        std = floored_deviation(features, correction=0)
        self.mean.copy_(features.mean(0))
        self.std.copy_(std if std.any() else torch.ones_like(std))
        self.fitted.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """Return standardised features ``(N, dim)``."""
        return (features.to(self.mean.dtype) - self.mean) / self.std


def source_adapter(dim: int, width: int) -> nn.Sequential:
    """Return what S's features pass on their way to the decoder: standardised, then linear.

    :param dim: number of S's features.
    :param width: of the code that the decoder reads.
    """
    return nn.Sequential(Standardize(dim), _linear(dim, width))


def target_adapter(dim: int, width: int) -> nn.Module:
    """Return what T2's code passes: nothing where the widths agree, else a linear layer.

    :param dim: width of T2's code.
    :param width: of the code that the decoder reads.
    """
    return nn.Identity() if dim == width else _linear(dim, width)


def _linear(dim: int, width: int) -> nn.Linear:
    layer = nn.Linear(dim, width)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    return layer
