"""A small coupled network, its strategy and a mini-batch; the weights that training has moved."""

import torch
from networks import Of
from torch import nn

from avalanche_cetl import CICNN, CETLStrategy, CoupledModel, GFISettings, ModuleEncoder
from avalanche_cetl.common.batch import Batch

SHAPE = (1, 8, 8)


def source_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))


def small_target():
    """A classifier of one convolution and one hidden layer, for tests that train often."""
    return Of(
        lambda m, x: m.classifier(m.features(x)),
        features=nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        classifier=nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


def small_coupled():
    torch.manual_seed(1)
    return coupled(target=small_target())


def coupled(seed=1, source=True, target=None):
    """A coupled network; `source` is an encoder, True for a small one, or None."""
    torch.manual_seed(seed)
    target = CICNN(3, SHAPE, width=0.05) if target is None else target
    if source is True:
        source = ModuleEncoder(source_net(), input_shape=SHAPE)
    return CoupledModel.build(source, target, SHAPE)


#: The printed schedule, in which one mini-batch is one step of every stage.
PRINTED = {"preset": "paper", "dwa_lambda": 1e-3}


def strategy(model=None, lr=1e-2, optimizer=None, **arguments):
    model = coupled() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr) if optimizer is None else optimizer
    settings = {
        "train_mb_size": 16,
        "train_epochs": 1,
        "eval_mb_size": 32,
        "warmup_epochs": 1,
        "gfi": GFISettings(samples=8),
        "evaluator": None,
        **PRINTED,
        **arguments,
    }
    if settings["preset"] == "best" and "variant" not in arguments:
        del settings["gfi"], settings["warmup_epochs"], settings["dwa_lambda"]
    return CETLStrategy(model=model, optimizer=optimizer, **settings)


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def batch(rows=5, **fields):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(rows, *SHAPE, generator=generator)
    return Batch([images, torch.arange(rows) % 3, torch.zeros(rows, dtype=torch.long)], **fields)
