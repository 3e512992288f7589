"""A small student, and a run of it beside a teacher with any plugins."""

import torch

from avalanche_cetl import CICNN, CETLStrategy, CoupledModel, GFISettings

SHAPE = (1, 8, 8)


def unread(count):
    """Labels and task labels that a loss does not read."""
    return torch.full((count,), -1), torch.zeros(count)


def student(width=0.1, seed=1):
    torch.manual_seed(seed)
    return CICNN(3, SHAPE, width=width)


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
        **settings,
    )
    strategy.train(benchmark.train_stream)
    return strategy


def coupled(teacher, seed=1):
    return CoupledModel.build(teacher, student(seed=seed), SHAPE)
