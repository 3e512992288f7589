import math

import pytest
import torch
from avalanche.models import SimpleMLP
from avalanche.training.plugins import LwFPlugin, ReplayPlugin
from torch import nn
from vector_streams import stream

from avalanche_cetl import GFI, GFIPlugin, GFISettings


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def train(strategy, experiences):
    for experience in experiences:
        strategy.train(experience)
    return strategy


def test_gfi_trains_beside_replay_and_lwf():
    model = SimpleMLP(num_classes=6, input_size=6, hidden_size=8)
    run = GFI(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05),
        dwa_lambda=0.1,
        gfi={"samples": 12, "estimator": "rank"},
        train_mb_size=5,
        plugins=[ReplayPlugin(10), LwFPlugin(1.0, 2.0)],
        evaluator=None,
    )
    train(run, stream())
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_gfi_takes_both_forms_of_the_penalty():
    for penalty in ("proximal", "loss"):
        model = network()
        run = GFI(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            dwa_lambda=0.1,
            penalty=penalty,
            train_mb_size=5,
            evaluator=None,
        )
        train(run, stream(2, disjoint=False))
        assert run.plugins[0].penalty == penalty
    with pytest.raises(ValueError, match="'proximal', 'loss'"):
        GFIPlugin(1.0, penalty="prox")
    with pytest.raises(ValueError, match="finite with penalty='loss'"):
        GFIPlugin(math.inf, penalty="loss")


def strategy_of(**arguments):
    model = network()
    return GFI(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        **{"dwa_lambda": 0.5, "evaluator": None, **arguments},
    )


def test_settings_and_keyword_arguments_mean_the_same():
    for gfi in ({"samples": 7, "estimator": "rank"}, GFISettings(samples=7, estimator="rank")):
        plugin = strategy_of(gfi=gfi).plugins[0]
        assert plugin.settings == GFISettings(samples=7, estimator="rank")


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"gfi": GFISettings(refresh_every=2)}, ValueError, "refresh_every"),
        ({"gfi": GFISettings(normalize_samples=True)}, ValueError, "normalize_samples"),
        ({"gfi": 256}, TypeError, "GFISettings"),
        ({"likelihood": "bernoulli"}, ValueError, "criterion="),
        ({"ewc_lambda": 1.0}, TypeError, "dwa_lambda="),
    ],
)
def test_wrong_arguments_are_refused_with_the_right_ones(arguments, kind, told):
    with pytest.raises(kind, match=told):
        strategy_of(**arguments)
