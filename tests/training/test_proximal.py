import math

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_cetl import (
    CICNN,
    GFI,
    CETLStrategy,
    CoupledModel,
    GFIPlugin,
    ModuleEncoder,
    transfer_benchmark,
)
from avalanche_cetl.allocation.proximal import Pull
from avalanche_cetl.training import NonFiniteLossError


def stream(experiences=3, rows=20):
    generator = torch.Generator().manual_seed(0)
    sets = []
    for k in range(experiences):
        y = torch.arange(rows) % 2
        x = torch.randn(rows, 6, generator=generator)
        x[:, k] += 3 * y - 1.5
        attributes = [DataAttribute(y.tolist(), "targets"), TaskLabels([0] * rows)]
        data = torch.utils.data.TensorDataset(x, y)
        sets.append(TaskAwareSupervisedClassificationDataset([data], data_attributes=attributes))
    benchmark = benchmark_from_datasets(train=sets)
    return with_classes_timeline(with_task_labels(benchmark)).train_stream


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def naive(model, *plugins, optimizer=None):
    torch.manual_seed(1)
    return Naive(
        model=model,
        optimizer=optimizer or torch.optim.SGD(model.parameters(), 0.1),
        train_mb_size=5,
        train_epochs=2,
        plugins=list(plugins),
        evaluator=None,
    )


def train(strategy, experiences):
    for experience in experiences:
        strategy.train(experience)
    return strategy


# ------------------------------------------------------------------ the step alone


def held(experiences=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    pull, kept = Pull(), []
    for _ in range(experiences):
        importance = torch.rand(7, generator=generator, dtype=dtype)
        importance[0] = 0
        anchor = torch.randn(7, generator=generator, dtype=dtype)
        kept.append((importance, anchor))
        pull.add({"w": importance}, {"w": anchor})
    return pull, kept


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e6])
def test_the_step_solves_the_implicit_equation_of_all_experiences_penalties(strength):
    pull, kept = held()
    before = torch.randn(7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    parameter = nn.Parameter(before.clone())
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=0.3), strength)
    for i in range(7):
        now = float(parameter[i].detach())
        gradient = sum(strength * float(f[i]) * (now - float(a[i])) for f, a in kept)
        assert now - float(before[i]) + 0.3 * gradient == pytest.approx(
            0, abs=1e-9 * (1 + strength)
        )
    assert parameter[0] == before[0]


def test_small_steps_agree_with_a_penalty_in_the_loss_to_first_order():
    pull, kept = held()
    before = torch.randn(7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradient = sum(f * (before - a) for f, a in kept)
    errors = []
    for rate in (1e-3, 1e-4):
        parameter = nn.Parameter(before.clone())
        pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=rate), 1.0)
        errors.append(float((parameter - (before - rate * gradient)).abs().max()))
    assert errors[0] < 1e-4 and errors[1] < 0.011 * errors[0]


@pytest.mark.parametrize("strength", [1e30, 1e300, math.inf])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_no_strength_overflows_in_float32(strength, scale):
    pull = Pull()
    anchors = torch.tensor([1.0, 2.0, 3.0])
    for _ in range(3):
        pull.add({"w": torch.tensor([0.0, 1.0, 2.0]) * scale}, {"w": anchors})
    parameter = nn.Parameter(torch.zeros(3))
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=0.1), strength)
    if strength * scale > 1e20:
        assert parameter.tolist() == [0.0, 2.0, 3.0]
    assert parameter.isfinite().all() and parameter[0] == 0


def test_each_group_pulls_at_its_own_rate_and_what_the_optimiser_does_not_hold_stays():
    params = {n: nn.Parameter(torch.ones(2, dtype=torch.float64)) for n in "abcd"}
    params["d"].requires_grad_(False)
    pull = Pull()
    ones = {n: torch.ones(2, dtype=torch.float64) for n in "abcd"}
    pull.add(ones, {n: 0 * v for n, v in ones.items()})
    groups = [
        {"params": [params["a"]], "lr": 1.0},
        {"params": [params["b"], params["d"]], "lr": torch.tensor(3.0)},
    ]
    pull.step(params, torch.optim.Adam(groups, foreach=False), 1.0)
    found = {name: float(p[0]) for name, p in params.items()}
    assert found == pytest.approx({"a": 1 / 2, "b": 1 / 4, "c": 1.0, "d": 1.0})


def test_half_precision_weights_are_pulled():
    pull = Pull()
    pull.add({"w": torch.ones(2)}, {"w": torch.zeros(2, dtype=torch.bfloat16)})
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=1.0), 1.0)
    assert parameter.tolist() == [0.5, 0.5]


# ------------------------------------------------------------------ in training


def test_every_iteration_ends_with_the_step_at_the_rate_of_now():
    plugin = GFIPlugin(2.0)
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
    train(naive(model, Before(), plugin, After(), decay, optimizer=optimizer), stream())
    assert len(rates) > 1 and any(moved) and not all(moved)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adagrad", "RMSprop"])
@pytest.mark.parametrize("strength", [1.0, 1e5, 1e30])
def test_weights_stay_finite_at_every_strength(kind, strength):
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    plugin = GFIPlugin(strength)
    train(naive(model, plugin, optimizer=optimizer), stream(2))
    assert all(p.isfinite().all() for p in model.parameters())


def test_infinite_strength_keeps_what_matters_and_frees_what_does_not():
    plugin = GFIPlugin(math.inf)
    kept = []

    class Watch(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            for name, p in strategy.model.named_parameters():
                for e, weights in plugin.gated.items():
                    important = weights[name] > 0
                    assert torch.equal(p[important], plugin.saved_params[e][name][important])
                    kept.append(float(important.float().mean()))

    before = network()
    after = train(naive(network(), plugin, Watch()), stream(2)).model
    assert 0 < sum(kept) / len(kept) < 1
    assert not torch.equal(before[0].weight, after[0].weight)


def test_a_strong_penalty_in_the_loss_says_so_and_names_the_remedy():
    run = naive(network(), GFIPlugin(1e6, penalty="loss"))
    with pytest.raises(NonFiniteLossError, match=r"dwa_lambda=1000000\.0.*penalty='proximal'"):
        train(run, stream(3))


def test_weights_that_are_not_finite_are_never_measured_in_silence():
    class Spoil(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            strategy.model[0].weight.data[0, 0] = math.nan

    with pytest.raises(NonFiniteLossError, match="Fisher information became NaN"):
        train(naive(network(), Spoil(), GFIPlugin(1.0)), stream(1))


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
    run = naive(model, GFIPlugin(1.0), optimizer=Rateless(model.parameters()))
    with pytest.raises(ValueError, match="penalty='loss'"):
        train(run, stream(1))
    assert all(map(torch.equal, before, model.parameters()))
    run = naive(model, GFIPlugin(1.0, penalty="loss"), optimizer=Rateless(model.parameters()))
    train(run, stream(2))


def test_as_a_strategy_in_both_forms():
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
        train(run, stream(2))
        assert run.plugins[0].penalty == penalty
    with pytest.raises(ValueError, match="'proximal', 'loss'"):
        GFIPlugin(1.0, penalty="prox")
    with pytest.raises(ValueError, match="finite with penalty='loss'"):
        GFIPlugin(math.inf, penalty="loss")


def test_cetls_stage_2_holds_t2_as_stage_3_does(digits):
    shape = (1, 8, 8)
    torch.manual_seed(0)
    source = ModuleEncoder(CICNN(3, shape, width=0.05), input_shape=shape)
    model = CoupledModel.build(source, CICNN(3, shape, width=0.05), shape)
    plugin = GFIPlugin(math.inf, threshold=0, probability=1, samples=16)
    strategy = CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        variant="e",
        plugins=[plugin],
        train_mb_size=10,
        evaluator=None,
    )
    benchmark = transfer_benchmark([digits(20), digits(20, seed=1)], [digits(10)] * 2)
    train(strategy, benchmark.train_stream)
    params, first = dict(model.named_parameters()), plugin.saved_params[0]
    for name, importance in plugin.importances[0].items():
        held = importance > 0
        assert torch.equal(params[name][held], first[name][held])
    # T1 is none of the classifier's weights.
    assert any((params[n] != first[n]).any() for n in first if n.startswith("decoder."))
