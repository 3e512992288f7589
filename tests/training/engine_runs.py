"""A run with any setting of the engine, and how far its weights are from those of another."""

import torch
from coupled_runs import small_target
from torch import nn

from avalanche_cetl import CETLStrategy, CoupledModel, GFISettings, ModuleEncoder

SHAPE = (1, 8, 8)


def coupled(dtype=torch.float32):
    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    source = ModuleEncoder(source.to(dtype), input_shape=SHAPE)
    return CoupledModel.build(source, small_target(), SHAPE).to(dtype)


def trained(benchmark, model=None, workers=0, plugins=(), **arguments):
    model = coupled() if model is None else model
    settings = {
        "preset": "paper",
        "gfi": GFISettings(samples=8),
        "dwa_lambda": 0.1,
        "warmup_epochs": 1,
        "train_mb_size": 8,
        "train_epochs": 2,
        "eval_mb_size": 16,
        "evaluator": None,
        **arguments,
    }
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    strategy = CETLStrategy(model=model, optimizer=optimizer, plugins=list(plugins), **settings)
    torch.manual_seed(3)
    strategy.train(benchmark.train_stream, eval_streams=[], num_workers=workers)
    return strategy


def distance(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def moved(strategy):
    pairs = zip(strategy.model.parameters(), coupled().parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)
