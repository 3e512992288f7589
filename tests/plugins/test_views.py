import math

import pytest
import torch
from coupled_runs import coupled, strategy

from avalanche_cetl import CETLPlugin, ViewConsistency, adaptation_benchmark, transfer_benchmark
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.plugins.unlabelled import ramp
from avalanche_cetl.plugins.views import balance_loss, consistency_loss


def test_consistency_counts_sure_rows_only():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    goal = torch.tensor([[5.0, 0.0], [0.1, 0.0]], dtype=torch.float64)
    p = 1 / (1 + math.exp(-5.0))  # the first goal is sure, the second is not
    wanted = 2 * (0.5 - p) ** 2 / 4
    assert float(consistency_loss(logits, goal, 0.9).detach()) == pytest.approx(wanted)
    consistency_loss(logits, goal, 0.9).backward()
    assert logits.grad[0].any() and not logits.grad[1].any()
    everything = consistency_loss(logits, goal, 0.0)
    assert float(everything.detach()) > wanted
    assert float(consistency_loss(goal, goal, 0.0)) == 0


def test_rows_that_do_not_count_are_zero():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    goal = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    counted = torch.tensor([True, False, True, False, False, True])
    some = consistency_loss(logits[counted], goal[counted], 0.0)
    torch.testing.assert_close(consistency_loss(logits, goal, 0.0, counted), some / 2)


def test_the_ramp_rises_from_almost_nothing_to_one():
    factors = [ramp(done, 5) for done in range(8)]
    assert factors[0] == pytest.approx(math.exp(-5)) and factors[5:] == [1.0] * 3
    assert factors[:6] == sorted(set(factors[:6]))
    assert ramp(0, 0) == 1.0


def test_balance_is_zero_for_even_classes_and_log_k_for_one():
    even = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    assert float(balance_loss(even)) == pytest.approx(0.0, abs=1e-6)
    one = torch.tensor([[60.0, 0.0, 0.0]] * 4, dtype=torch.float64)
    assert float(balance_loss(one)) == pytest.approx(math.log(3), abs=1e-5)


class TiedTarget(torch.nn.Module):
    """Two layers that share their weights, of which the state has two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (torch.nn.Linear(64, n) for n in (64, 64, 3))
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()).relu())


def _strategy(plugins, make=lambda: None, **settings):
    torch.manual_seed(0)
    model = coupled(seed=0, source=None, target=make())
    return strategy(
        model, plugins=plugins, variant="e", augment=lambda x: x + 0.3 * torch.randn_like(x),
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("alternate", "options"),
    [("epoch", {}), ("iteration", {}), ("epoch", {"make": TiedTarget})],
)
def test_the_mean_teacher_is_the_running_mean(digits, alternate, options):
    data = adaptation_benchmark(digits(30, seed=1), digits(30, shift=0.1), digits(30, seed=2))
    plugin = ViewConsistency(decay=0.8)
    mean, seen = {}, []

    class Watch(CETLPlugin):  # stands behind the plugin, so it sees its state after each step
        def before_training_exp(self, strategy, *args, **kwargs):
            mean.update({k: v.clone() for k, v in strategy.model.target.state_dict().items()})

        def after_step(self, strategy, *args, **kwargs):
            if strategy.stage is Stage.COUPLED:
                self.after_update(strategy)

        def after_update(self, strategy, *args, **kwargs):
            for name, value in strategy.model.target.state_dict().items():
                mean[name] = 0.8 * mean[name] + 0.2 * value
                torch.testing.assert_close(plugin.state_dict()["slow"][name], mean[name])
            seen.append(strategy.stage)

    s = _strategy([plugin, Watch()], alternate=alternate, train_epochs=2, **options)
    s.train(data.train_stream)
    assert set(seen) == {Stage.COUPLED, Stage.CLASSIFY}
    assert {"L_view", "L_balance"} <= s.round_losses.keys()
    assert plugin.state_dict() == {"slow": None}


def test_consistency_makes_views_of_target_images_agree(digits):
    data = adaptation_benchmark(digits(60, seed=1), digits(60, shift=0.1), digits(30, seed=2))
    x = torch.stack([row[0] for row in data.test_stream[0].dataset])
    gaps = []
    for weight in (0.0, 1.0):  # with 30 all images are of one class, which agrees with itself
        views = ViewConsistency(weight, threshold=0.0, balance=0.0)
        s = _strategy([views], train_epochs=8, lr_factors=(1.0, 1.0))
        s.train(data.train_stream)
        s.model.eval()
        with torch.no_grad():
            noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            gaps.append(float(consistency_loss(s.model(x + noise), s.model(x), 0.0)))
            assert len(s.model(x).argmax(1).unique()) > 1
    assert gaps[1] < gaps[0] / 2


def test_the_ramp_weighs_the_added_losses(digits):
    data = adaptation_benchmark(digits(30, seed=1), digits(30, shift=0.1), digits(30, seed=2))
    bare, rounds = [], []

    class Before(CETLPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            bare.append(float(strategy.loss.detach()))

    class After(CETLPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            if strategy.stage is Stage.COUPLED:
                done = strategy.clock.train_exp_epochs
                whole = 1000 * float(balance_loss(strategy.coupled.logits.detach()))
                added = float(strategy.loss.detach()) - bare[-1]
                assert added == pytest.approx(ramp(done, 2) * whole, rel=1e-3, abs=1e-4)
                rounds.append(done)

    plugin = ViewConsistency(0.0, balance=1000.0, rampup_rounds=2)
    _strategy([Before(), plugin, After()], train_epochs=3).train(data.train_stream)
    assert set(rounds) == {0, 1, 2}


def test_labelled_rows_do_not_count_among_the_unlabelled(digits):
    """All rows have labels: rows="unlabelled" is then as no plugin at all."""
    x, y = digits(40, seed=1)
    weights = []
    for plugins in ([], [ViewConsistency(rows="unlabelled")]):
        s = _strategy(plugins, train_epochs=2)
        s.train(transfer_benchmark((x, y), (x[:2], y[:2])).train_stream)
        weights.append(dict(s.model.state_dict()))
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert s.round_losses["L_view"] == 0 and s.round_losses["L_balance"] == 0


class CachingTarget(torch.nn.Module):
    """A classifier that keeps a value of its weights while it evaluates, and a weight's graph."""

    def __init__(self):
        super().__init__()
        self.cache = {}
        self.offsets = torch.nn.Parameter(torch.zeros(16))
        self.features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
        torch.nn.utils.weight_norm(self.features[1])
        self.head = torch.nn.Linear(16, 3)

    def train(self, mode=True):
        super().train(mode)
        if mode and self.cache:
            self.cache = {}
        return self

    def forward(self, x):
        offsets = self.offsets * 1
        if not self.training:
            offsets = self.cache.setdefault("offsets", offsets)
        return self.head(torch.relu(self.features(x) + offsets))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_mean_teacher_answers_with_the_weights_that_it_has_now(digits):
    answers = []

    class Watch(ViewConsistency):
        def losses(self, strategy, batch):
            found, teacher = super().losses(strategy, batch), self._teacher.module
            with torch.no_grad():
                hidden = teacher.features(batch.images) + teacher.offsets
                wanted = teacher.head(torch.relu(hidden))
                answers.append((teacher(batch.images), wanted, teacher.offsets.clone()))
            return found

    torch.manual_seed(0)
    model = coupled(source=None, target=CachingTarget())
    run = strategy(model, variant="e", train_epochs=2, plugins=[Watch(decay=0.5)])
    benchmark = transfer_benchmark([digits(32), digits(32, seed=1)], [digits(10)] * 2)
    for experience in benchmark.train_stream:
        run.train(experience)
        run.eval(benchmark.test_stream)
    assert len(answers) > 4 and sum(bool(offsets.any()) for *_, offsets in answers) > 4
    for found, wanted, _ in answers:
        torch.testing.assert_close(found, wanted)
