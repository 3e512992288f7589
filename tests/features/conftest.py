"""A source network that counts its images, and a benchmark for it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from avalanche_cetl import (
    transfer_benchmark,
)
from avalanche_cetl.features import shards

sys.path.insert(0, str(Path(__file__).parent))  # these tests, and scripts of theirs, share stores
from stores import SHAPE, Counting


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 8 rows, so that few images fill several."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 8)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    made = Counting(net, input_shape=SHAPE)
    Counting.images = 0
    return made


@pytest.fixture
def transfer(digits):
    return transfer_benchmark(
        digits(60), digits(30, seed=1), labels_per_class=5, source_train=digits(40, seed=2)
    )
