"""S itself with a new head: for those who can run S in the end."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl import TimmEncoder, linear_probe
from benchmarks.methods.job import TransferJob
from benchmarks.methods.plain import naive
from benchmarks.methods.sources import for_imagenet, of_torchvision


def probe(job: TransferJob) -> nn.Module:
    """Fit a classifier of S's features; the strength is that of its regularisation."""
    return linear_probe(job.features, job.train[1], job.strength)


class FineTuned(nn.Module):
    """S with a new head, all its weights trained."""

    def __init__(self, job: TransferJob):
        super().__init__()
        assert isinstance(job.encoder, TimmEncoder)
        torch.manual_seed(job.seed)  # of the head, whatever was drawn before
        self.trunk = copy.deepcopy(job.encoder.module).requires_grad_(True)
        self.preprocess = copy.deepcopy(job.encoder.preprocessing)
        self.head = nn.Linear(job.encoder.dim, job.classes)
        self.pixels = job.pixels

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of standardised images."""
        trunk: Any = self.trunk
        maps = trunk.forward_features(self.preprocess(self.pixels.restore(x)))
        return self.head(trunk.forward_head(maps, pre_logits=True))


def fine_tuned(job: TransferJob) -> nn.Module:
    """Train S, one of timm's, with a new head."""
    return naive(job, FineTuned(job))


class FineTunedVGG(nn.Module):
    """VGG-16 with a new last layer, which reads standardised images."""

    def __init__(self, job: TransferJob):
        super().__init__()
        self.pixels, self.network = job.pixels, of_torchvision("vgg16")
        torch.manual_seed(job.seed)  # of the last layer, whatever was drawn before
        layers = self.network.get_submodule("classifier")
        layers[-1] = nn.Linear(layers[-1].in_features, job.classes)  # type: ignore[operator,index]

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        return self.network(for_imagenet(self.pixels.restore(x)))


def fine_tuned_vgg(job: TransferJob) -> nn.Module:
    """Train FT-VGG: the whole network, with a new last layer."""
    return naive(job, FineTunedVGG(job))
