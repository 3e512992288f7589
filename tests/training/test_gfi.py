import inspect
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
        basis="diagonal",
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
            basis="diagonal",
        )
        train(run, stream(2, disjoint=False))
        assert run.plugins[0].penalty == penalty
    with pytest.raises(ValueError, match="'proximal', 'loss'"):
        GFIPlugin(1.0, penalty="prox", basis="diagonal")
    with pytest.raises(ValueError, match="finite with penalty='loss'"):
        GFIPlugin(math.inf, penalty="loss", basis="diagonal")


def strategy_of(**arguments):
    model = network()
    return GFI(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        **{"dwa_lambda": 0.5, "evaluator": None, **arguments},
    )


def test_settings_and_keyword_arguments_mean_the_same():
    for gfi in ({"samples": 7, "estimator": "rank"}, GFISettings(samples=7, estimator="rank")):
        basis = {"basis": "diagonal"} if isinstance(gfi, dict) else {}
        plugin = strategy_of(gfi=gfi, **basis).plugins[0]
        assert plugin.settings == GFISettings(samples=7, estimator="rank")


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"gfi": GFISettings(refresh_every=2)}, ValueError, "refresh_every"),
        ({"gfi": 256}, TypeError, "GFISettings"),
        ({"likelihood": "bernoulli"}, ValueError, "criterion="),
        ({"ewc_lambda": 1.0}, TypeError, "dwa_lambda= alone"),
        ({"penalty": "loss", "gfi": {"penalty": "loss"}}, ValueError, "penalty='loss' is given"),
        ({"output": 0, "gfi": {"output": 1}}, ValueError, "output=0 is given"),
        ({"gfi": {"dwa_lambda": 2.0}}, ValueError, "dwa_lambda=0.5 is given"),
        ({"mode": "online", "gfi": {"mode": "separate"}}, ValueError, "mode='online' is given"),
        ({"seed": 0, "gfi": GFISettings(samples=7)}, ValueError, "seed=0 is given"),
        ({"basis": "full"}, ValueError, "'kronecker'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_right_ones(arguments, kind, told):
    with pytest.raises(kind, match=told):
        strategy_of(**arguments)


GIVEN = {
    "basis": "kronecker", "rank": 5, "threshold": 0.25, "probability": 0.75, "estimator": "rank",
    "fisher": "empirical", "samples": 9, "normalize": False, "seed": 3,
}  # fmt: skip


def test_every_argument_of_the_plugin_is_one_of_the_strategy():
    own, ours = (inspect.signature(one.__init__).parameters for one in (GFIPlugin, GFI))
    assert own.keys() <= ours.keys()
    plugin = strategy_of(
        mode="online",
        decay_factor=0.5,
        keep_importance_data=True,
        penalty="loss",
        output=0,
        **GIVEN,
    ).plugins[0]
    assert plugin.settings == GFISettings(**GIVEN)
    assert (plugin.mode, plugin.decay_factor, plugin.penalty) == ("online", 0.5, "loss")
    assert plugin.keep_importance_data and plugin.output == 0
    assert strategy_of(gfi=GIVEN).plugins[0].settings == GFISettings(**GIVEN)


def test_what_is_not_given_is_as_the_plugin_has_it():
    plugin, wanted = strategy_of().plugins[0], GFIPlugin(0.5)
    assert plugin.settings == wanted.settings
    for name in ("dwa_lambda", "mode", "decay_factor", "keep_importance_data", "penalty"):
        assert getattr(plugin, name) == getattr(wanted, name)
    assert plugin.likelihood == "categorical"
    mixed = strategy_of(basis="diagonal", gfi={"samples": 7}).plugins[0]
    assert mixed.settings == GFISettings(samples=7)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    bare = GFI(model=model, optimizer=optimizer, evaluator=None).plugins[0]
    assert (bare.dwa_lambda, bare.settings) == (GFIPlugin().dwa_lambda, GFIPlugin().settings)


def test_the_strength_of_ewc_is_taken_as_ours_with_a_warning():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(FutureWarning, match=r"dwa_lambda=2\.0") as caught:
        strategy = GFI(
            model=model, optimizer=optimizer, ewc_lambda=2.0, evaluator=None, basis="diagonal"
        )
    assert strategy.plugins[0].dwa_lambda == 2.0
    assert [one.filename for one in caught if one.category is FutureWarning] == [__file__]
