"""The proximal step of GFIPlugin in training."""

import math

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from coupled_runs import coupled, strategy
from gfi_runs import OPEN, train
from gfi_runs import network as dropping
from vector_streams import stream

from avalanche_cetl import GFIPlugin, transfer_benchmark
from avalanche_cetl.training import NonFiniteLossError


def network():
    return dropping(2, dropout=0)


def test_every_iteration_ends_with_the_step_at_the_rate_of_now():
    plugin = GFIPlugin(2.0, basis="diagonal")
    seen = []

    class Before(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            seen.append([p.detach().clone() for p in strategy.model.parameters()])

    class After(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            rate = strategy.optimizer.param_groups[0]["lr"]
            rates.add(rate)
            named = strategy.model.named_parameters()
            for before, (name, now) in zip(seen.pop(), named, strict=True):
                up, down = before.double(), torch.ones_like(before).double()
                for e, weights in plugin.gated.items():
                    up += rate * 2.0 * weights[name] * plugin.saved_params[e][name]
                    down += rate * 2.0 * weights[name]
                torch.testing.assert_close(now.double(), up / down, rtol=1e-5, atol=1e-6)
                moved.append(bool((now != before).any()))

    rates, moved = set(), []
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    decay = LRSchedulerPlugin(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    plugins = [Before(), plugin, After(), decay]
    train(model, plugins, stream(disjoint=False), optimizer=optimizer)
    assert len(rates) > 1 and any(moved) and not all(moved)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adagrad", "RMSprop"])
@pytest.mark.parametrize(
    ("basis", "strength"),
    [("diagonal", 1.0), ("diagonal", 1e5), ("diagonal", 1e30), ("kronecker", 1e30)],
)
def test_weights_stay_finite_at_every_strength(kind, basis, strength, trains_in_avalanche):
    trains_in_avalanche(getattr(torch.optim, kind))
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    plugin = GFIPlugin(strength, basis=basis)
    train(model, [plugin], stream(2, disjoint=False), optimizer=optimizer)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_diverging_penalty_in_the_loss_is_an_error_with_the_remedy():
    plugin = GFIPlugin(1e6, penalty="loss", basis="diagonal")
    told = r"dwa_lambda=1000000\.0.*penalty='proximal'"
    with pytest.raises(NonFiniteLossError, match=told) as raised:
        train(network(), [plugin], stream(3, disjoint=False))
    assert "experience 1" in raised.value.__notes__[0]


def test_weights_that_are_not_finite_are_never_measured_in_silence():
    class Spoil(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            strategy.model[0].weight.data[0, 0] = math.nan

    with pytest.raises(NonFiniteLossError, match="Fisher information became NaN"):
        train(network(), [Spoil(), GFIPlugin(1.0, basis="diagonal")], stream(1, disjoint=False))


class Rateless(torch.optim.Optimizer):
    """A step of fixed length; its groups have no learning rate."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= 1e-3 * p.grad.sign()


def test_an_optimiser_without_learning_rate_is_refused_before_training():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    given = {"experiences": stream(2, disjoint=False), "optimizer": Rateless(model.parameters())}
    with pytest.raises(ValueError, match="penalty='loss'"):
        train(model, [GFIPlugin(1.0, basis="diagonal")], **given)
    assert all(map(torch.equal, before, model.parameters()))
    train(model, [GFIPlugin(1.0, penalty="loss", basis="diagonal")], **given)


def test_momentum_holds_weights_as_it_does_in_the_loss():
    found = {}
    for penalty in ("proximal", "loss"):
        for momentum in (0.0, 0.9):
            model = network()
            rate = 0.02 * (1 - momentum)
            optimizer = torch.optim.SGD(model.parameters(), rate, momentum=momentum)
            plugin = GFIPlugin(3.0, penalty=penalty, basis="diagonal", **OPEN)
            train(model, [plugin], stream(2, disjoint=False), 40, optimizer=optimizer)
            anchors = plugin.saved_params[0]
            away = [(p - anchors[n]).square().sum() for n, p in model.named_parameters()]
            found[penalty, momentum] = float(sum(away).detach().sqrt())
    assert found["proximal", 0.9] == pytest.approx(found["loss", 0.9], rel=0.1)
    assert found["proximal", 0.0] == pytest.approx(found["loss", 0.0], rel=0.1)


def test_cetls_stage_2_holds_t2_as_stage_3_does(digits):
    model = coupled()
    plugin = GFIPlugin(math.inf, samples=16, basis="diagonal", **OPEN)
    run = strategy(model, variant="e", plugins=[plugin], train_mb_size=10)
    benchmark = transfer_benchmark([digits(20), digits(20, seed=1)], [digits(10)] * 2)
    for experience in benchmark.train_stream:
        run.train(experience)
    params, first = dict(model.named_parameters()), plugin.saved_params[0]
    for name, importance in plugin.importances[0].items():
        held = importance > 0
        assert torch.equal(params[name][held], first[name][held])
    # T1 is none of the classifier's weights.
    assert any((params[n] != first[n]).any() for n in first if n.startswith("decoder."))
