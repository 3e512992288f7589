"""A small student, and a run of it beside a teacher with any plugins."""

import torch
from networks import Of
from torch import nn

from avalanche_cetl import CETLStrategy, CoupledModel, GFISettings

SHAPE = (1, 8, 8)


def unread(count):
    """Labels and task labels that a loss does not read."""
    return torch.full((count,), -1), torch.zeros(count)


def student(seed=1):
    """A classifier of one convolution and one hidden layer."""
    torch.manual_seed(seed)
    return Of(
        lambda m, x: m.head(m.hidden(m.features(x).flatten(1))),
        features=nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        hidden=nn.Sequential(nn.Linear(96, 24), nn.ReLU()),
        head=nn.Linear(24, 3),
    )


def trained(model, benchmark, *plugins, lr=1e-2, **options):
    settings = {
        "variant": "e",
        "train_epochs": 2,
        "warmup_epochs": 1,
        "train_mb_size": 16,
        "gfi": GFISettings(samples=8),
        "evaluator": None,
        **options,
    }
    torch.manual_seed(2)
    strategy = CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr),
        plugins=list(plugins),
        **{"preset": "paper", **settings},
    )
    strategy.train(benchmark.train_stream)
    return strategy


def coupled(teacher, seed=1):
    return CoupledModel.build(teacher, student(seed=seed), SHAPE)
