"""A small run over three experiences: straight, and from a checkpoint after the second."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive

from avalanche_cetl import load_checkpoint, save_checkpoint, transfer_benchmark

sys.path.insert(0, str(Path(__file__).parent))  # the tests share saved_runs


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def mlp():
    return SimpleMLP(10, 64, hidden_size=16)


def small_benchmark(**arguments):
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 10
    parts = [(images, labels), (1 - images, labels), (images / 2, labels)]
    return transfer_benchmark(parts, [(images, labels)] * 3, **arguments)


def make_strategy(
    plugins=lambda model: [], kind=Naive, optimizer=sgd, network=mlp, train_epochs=1, **arguments
):
    """A strategy of any class; `plugins` makes its plugins, given the network."""
    torch.manual_seed(5)
    model = network()
    return kind(
        model=model,
        optimizer=optimizer(model.parameters()),
        plugins=plugins(model),
        train_mb_size=10,
        train_epochs=train_epochs,
        evaluator=EvaluationPlugin(loss_metrics(epoch=True), loggers=[]),
        **arguments,
    )


def assert_resumed_as_straight(make, benchmark, path, after=2, **loading):
    """Weights, losses of all experiences, and random state are the same at the end."""
    straight = make()
    _seed(1)
    for number, experience in enumerate(benchmark.train_stream):
        if number == after:
            save_checkpoint(straight, path)
        straight.train(experience)
    random_state = torch.get_rng_state()
    _seed(99)
    resumed = make()
    assert load_checkpoint(resumed, path, **loading).experiences == after
    for experience in benchmark.train_stream[after:]:
        resumed.train(experience)
    mine, its = straight.model.state_dict(), resumed.model.state_dict()
    assert [name for name in mine if not torch.equal(mine[name], its[name])] == []
    assert mine.keys() == its.keys()
    assert all(tensor.isfinite().all() for tensor in mine.values())
    assert straight.evaluator.get_all_metrics() == resumed.evaluator.get_all_metrics() != {}
    assert torch.equal(random_state, torch.get_rng_state())
    return straight, resumed


def _seed(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.fixture
def small():
    """The tools above."""
    return SimpleNamespace(
        benchmark=small_benchmark,
        strategy=make_strategy,
        mlp=mlp,
        sgd=sgd,
        resumed_as_straight=assert_resumed_as_straight,
    )


@pytest.fixture
def benchmark(digits):
    return transfer_benchmark(digits(40), digits(20, seed=1), labels_per_class=5)
