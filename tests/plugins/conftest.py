"""A teacher, and a benchmark with few labels for its student."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from coupled_runs import SHAPE
from torch import nn

from avalanche_cetl import ModuleEncoder, transfer_benchmark

sys.path.insert(0, str(Path(__file__).parent))  # the tests share loss_runs


@pytest.fixture(scope="session")
def trained_network(digits):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )
    x, y = digits(120, seed=7)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


@pytest.fixture
def teacher(trained_network):
    """A classifier of the three classes, trained."""
    return ModuleEncoder(copy.deepcopy(trained_network), input_shape=SHAPE)


@pytest.fixture
def few(digits):
    return transfer_benchmark(digits(60), digits(30, seed=1), labels_per_class=2)
