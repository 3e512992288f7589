"""Small runs of CETLStrategy and of stock strategies, and whether two end as the same."""

import random

import coupled_runs
import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TextLogger
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from avalanche.training.supervised import Naive
from coupled_runs import SHAPE, source_net, strategy
from networks import Of
from torch import nn

from avalanche_cetl import (
    CheckpointPlugin,
    ModuleEncoder,
    cetl_metrics,
    gfi_metrics,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)


def coupled(seed=1, units=8, source_seed=0):
    """With a classifier that draws random numbers while it trains."""
    torch.manual_seed(seed)
    target = Of(
        lambda m, x: m.classifier(m.hidden(m.features(x).flatten(1))),
        features=nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        hidden=nn.Sequential(nn.Dropout(0.2), nn.Linear(64, units), nn.ReLU()),
        classifier=nn.Linear(units, 3),
    )
    source = ModuleEncoder(source_net(source_seed), input_shape=SHAPE)
    return coupled_runs.coupled(seed, source, target)


def noisy(x):
    return x + 0.05 * torch.randn_like(x)


def make(folder=None, model=None, plugins=(), sgd=False, log=None, scheduler=True, **arguments):
    """A CETLStrategy with metrics, schedule and random draws; it saves into a folder."""
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
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, stream=True),
        loss_metrics(epoch=True),
        forgetting_metrics(experience=True),
        cetl_metrics(images=2),
        gfi_metrics(),
        loggers=[TextLogger(log)] if log is not None else [],
    )
    settings = {
        "train_epochs": 3,
        "eval_every": 1,
        "dwa_lambda": 0.1,
        "input_noise": 0.2,
        "augment": noisy,
        **arguments,
    }
    return strategy(model, optimizer=optimizer, plugins=plugins, evaluator=evaluator, **settings)


def mlp():
    return SimpleMLP(10, 64, hidden_size=16)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def make_stock(plugins=lambda model: [], kind=Naive, optimizer=sgd, network=mlp, **arguments):
    """A strategy of any class; `plugins` makes its plugins, given the network."""
    torch.manual_seed(5)
    model = network()
    return kind(
        model=model,
        optimizer=optimizer(model.parameters()),
        plugins=plugins(model),
        train_mb_size=10,
        train_epochs=1,
        evaluator=EvaluationPlugin(loss_metrics(epoch=True), loggers=[]),
        **arguments,
    )


def three_experiences(**arguments):
    """A benchmark for it."""
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 10
    parts = [(images, labels), (1 - images, labels), (images / 2, labels)]
    return transfer_benchmark(parts, [(images, labels)] * 3, **arguments)


def assert_resumed_as_straight(make, benchmark, path, after=2, **loading):
    """A run that is loaded after some experiences ends as the one that was saved there."""
    straight = make()
    seeded(1)
    for number, experience in enumerate(benchmark.train_stream):
        if number == after:
            save_checkpoint(straight, path)
        straight.train(experience)
    random_states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    seeded(99)
    resumed = make()
    assert load_checkpoint(resumed, path, **loading).experiences == after
    for experience in benchmark.train_stream[after:]:
        resumed.train(experience)
    assert_same(straight, resumed)
    assert all(tensor.isfinite().all() for tensor in resumed.model.state_dict().values())
    assert torch.equal(random_states[0], torch.get_rng_state())
    assert random_states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    return straight, resumed


def weights(strategy):
    return {name: p.detach().clone() for name, p in strategy.model.state_dict().items()}


def assert_same(one, other):
    """Weights, metrics, losses and the clock are the same."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    mine, its = one.evaluator.get_all_metrics(), other.evaluator.get_all_metrics()
    assert mine.keys() == its.keys() != set()
    for name, (xs, values) in mine.items():
        if "Reconstructions" not in name:
            assert (xs, values) == its[name], name
    assert getattr(one, "round_losses", None) == getattr(other, "round_losses", None)
    assert vars(one.clock) == vars(other.clock)


def seeded(seed=3):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
