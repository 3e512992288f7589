"""A small student, and a run of it beside a teacher with any plugins."""

import torch
from torch import nn

from avalanche_cetl import CETLStrategy, CoupledModel, GFISettings

SHAPE = (1, 8, 8)


def unread(count):
    """Labels and task labels that a loss does not read."""
    return torch.full((count,), -1), torch.zeros(count)


class Student(nn.Module):
    """A classifier of one convolution and one hidden layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Sequential(nn.Linear(96, 24), nn.ReLU())
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(self.hidden(self.features(x).flatten(1)))


def student(seed=1):
    torch.manual_seed(seed)
    return Student()


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
