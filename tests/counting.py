"""A network that notes everything that passes through it, and images for it."""

import torch
from torch import nn


class Counting(nn.Module):
    """Counts its passes, averages its input in training and in evaluation, keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.layer, self.passes = nn.Linear(64, 6), 0
        self.register_buffer("average", torch.zeros(64))
        self.largest = 0

    def forward(self, x):
        x = x.flatten(1)
        self.passes += 1
        self.largest = max(self.largest, len(x))
        self.average.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.layer(x - self.average)


def images(count=24):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 6
