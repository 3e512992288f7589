"""A small student, and a run of it beside a teacher with any plugins."""

import coupled_runs
import torch
from coupled_runs import strategy
from networks import Of
from torch import nn


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


def trained(model, benchmark, *plugins, **options):
    torch.manual_seed(2)
    options = {"variant": "e", "train_epochs": 2, **options}
    run = strategy(model, plugins=list(plugins), **options)
    run.train(benchmark.train_stream)
    return run


def coupled(teacher, seed=1):
    return coupled_runs.coupled(source=teacher, target=student(seed))
