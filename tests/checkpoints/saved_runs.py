"""A run with metrics, schedule and random draws, and whether two are the same at their ends."""

import random

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CheckpointPlugin,
    CoupledModel,
    GFISettings,
    ModuleEncoder,
    cetl_metrics,
    gfi_metrics,
)

SHAPE = (1, 8, 8)


def source_net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )


def coupled(seed=1, width=0.05, source_seed=0):
    torch.manual_seed(seed)
    target = CICNN(3, SHAPE, width=width, dropout=0.2)
    encoder = ModuleEncoder(source_net(source_seed), input_shape=SHAPE)
    return CoupledModel.build(encoder, target, SHAPE)


def noisy(x):
    return x + 0.05 * torch.randn_like(x)


def make(folder=None, model=None, plugins=(), sgd=False, log=None, scheduler=True, **arguments):
    model = coupled() if model is None else model
    parameters = model.parameters()
    if sgd:
        optimizer = torch.optim.SGD(parameters, 0.02, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(parameters, 1e-2)
    plugins = list(plugins)
    if scheduler:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        plugins.append(LRSchedulerPlugin(schedule))
    if folder is not None:
        plugins.append(CheckpointPlugin(folder, keep=100))
    loggers = [TextLogger(log)] if log is not None else []
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, stream=True),
        loss_metrics(epoch=True),
        forgetting_metrics(experience=True),
        cetl_metrics(images=2),
        gfi_metrics(),
        loggers=loggers,
    )
    settings = {
        "train_mb_size": 8,
        "train_epochs": 3,
        "eval_mb_size": 32,
        "eval_every": 1,
        "warmup_epochs": 1,
        "gfi": GFISettings(samples=8),
        "dwa_lambda": 0.1,
        "input_noise": 0.2,
        "augment": noisy,
        **arguments,
    }
    return CETLStrategy(
        model=model, optimizer=optimizer, plugins=plugins, evaluator=evaluator, **settings
    )


def weights(strategy):
    return {name: p.detach().clone() for name, p in strategy.model.state_dict().items()}


def assert_same(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    mine, its = one.evaluator.get_all_metrics(), other.evaluator.get_all_metrics()
    assert mine.keys() == its.keys()
    for name, (xs, values) in mine.items():
        if "Reconstructions" not in name:
            assert (xs, values) == its[name], name
    assert one.round_losses == other.round_losses
    assert vars(one.clock) == vars(other.clock)


def seeded(seed=3):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
