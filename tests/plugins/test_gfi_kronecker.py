"""GFIPlugin in a Kronecker basis: its importances, penalties and gates."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from kronecker_runs import GATE, MODES, PENALTIES, Keep, kronecker, network, rows_of, train
from naive_bases import along, directions
from vector_streams import stream

from avalanche_cetl import Quantile
from avalanche_cetl.allocation.measure import Measurement
from avalanche_cetl.allocation.merged_basis import MergedBasis
from avalanche_cetl.allocation.output_likelihood import OutputLikelihood
from avalanche_cetl.information.fisher import fisher_information
from avalanche_cetl.information.generalized import (
    dwa_penalty,
    mean_importance,
    normalize_importance,
)
from avalanche_cetl.information.kronecker import kronecker_basis


def assert_equal(found, wanted, rtol=1e-5, atol=1e-9):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol)


class Watched(OutputLikelihood):
    """Keeps the targets that were drawn last."""

    def draw(self, *arguments):
        self.drawn = super().draw(*arguments)
        return self.drawn


class Losses(SupervisedPlugin):
    """Keeps the loss before a plugin adds its penalty."""

    def before_backward(self, strategy, *args, **kwargs):
        self.loss = strategy.loss.detach().clone()


# ------------------------------------------------------------------ importances


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("rank", [64, 3])
def test_importances_are_the_fisher_information_in_the_basis_of_the_experience(fisher, rank):
    plugin = kronecker(fisher=fisher, rank=rank, keep_importance_data=True)
    plugin.measurer.likelihood = Watched("categorical")
    model = network()

    class Check(SupervisedPlugin):
        def after_training_exp(self, strategy, *args, **kwargs):
            now = strategy.clock.train_exp_counter
            x, y = rows_of(strategy.experience)
            targets = plugin.measurer.likelihood.drawn if fisher == "sampled" else y
            wanted = fisher_information(
                model, x, "empirical", targets=targets, basis=plugin.bases[now]
            )
            assert_equal(plugin.importances[now], wanted)
            basis = kronecker_basis(model, x, "empirical", targets=targets, rank=rank)
            assert {n: b.shape for n, b in basis.items()} == {
                n: b.shape for n, b in plugin.bases[now].items()
            }
            params = dict(model.named_parameters())
            assert all(torch.equal(plugin.saved_params[now][n], p) for n, p in params.items())
            checked.append(now)

    checked = []
    train(model, [plugin, Check()], stream())
    assert checked == [0, 1, 2] == list(plugin.bases)
    assert plugin.bases[2].folded == {"0.bias", "3.bias"}
    assert plugin.importances[2]["0.weight"].shape == (min(8, rank), min(7, rank))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_held_is_the_sum_of_all_experiences(mode):
    """Beside a plugin of strength 0, which measures each by itself at the same weights."""
    plugin, alone = (
        kronecker(0.0, mode, keep_importance_data=True),
        kronecker(0.0, keep_importance_data=True),
    )
    keep = Keep(plugin)
    model = network()
    train(model, [plugin, alone, keep], stream())
    shapes = {n: p.shape for n, p in model.named_parameters()}
    decay = plugin.decay_factor or 1.0
    wanted = MergedBasis(64)
    for now in range(3):
        own = normalize_importance(alone.importances[now], alone.bases[now])
        wanted.add(own, alone.bases[now], shapes, decay)
        if now < 2:
            assert list(keep.gated[now + 1]) == [now]
            assert_equal(keep.gated[now + 1][now], wanted.importance, rtol=1e-4)
        if mode == "online":
            assert_equal(plugin.importances[now], wanted.importance, rtol=1e-4)
    assert keep.gated[0] == {}


# ------------------------------------------------------------------ penalties


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gate", [{}, GATE], ids=["open", "gated"])
def test_the_penalty_in_the_loss_is_eq_11_over_directions(mode, gate):
    plugin, before = kronecker(0.3, mode, penalty="loss", **gate), Losses()
    found = []

    class Check(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            wanted = 0.0
            for e, weights in plugin.gated.items():
                params = dict(strategy.model.named_parameters())
                anchors, basis = plugin.saved_params[e], plugin.store.basis
                wanted = float(dwa_penalty(params, anchors, weights, 0.3, basis).detach())
            found.append((float((strategy.loss - before.loss).detach()), wanted))

    train(network(), [before, plugin, Check()], stream())
    assert found[0] == (0, 0) and max(wanted for _, wanted in found) > 1e-3
    for added, wanted in found:
        assert added == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_step_moves_every_direction_by_its_share(mode):
    plugin = kronecker(2.0, mode)
    seen, moved = [], []

    class Before(SupervisedPlugin):
        def after_update(self, strategy, *args, **kwargs):
            seen.append({n: p.detach().clone() for n, p in strategy.model.named_parameters()})

    class After(SupervisedPlugin):
        def after_update(self, strategy, *args, **kwargs):
            before = seen.pop()
            params = {n: p.detach() for n, p in strategy.model.named_parameters()}
            for e, weights in plugin.gated.items():
                for layer in plugin.store.basis.values():
                    wanted = {n: before[n].clone() for n in layer.parameters}
                    away = {n: before[n] - plugin.saved_params[e][n] for n in layer.parameters}
                    far, shapes = layer.rotate(away), {n: p.shape for n, p in params.items()}
                    for place, group, u, v in directions(layer):
                        scale = 0.1 * 2.0 * float(weights[layer.weight][place])
                        step = along(layer, group, u, v, shapes)
                        for n in wanted:
                            wanted[n] -= scale / (1 + scale) * far[place] * step[n].float()
                    for n, value in wanted.items():
                        torch.testing.assert_close(params[n], value, rtol=1e-4, atol=1e-5)
                        moved.append(float((value - before[n]).norm()))

    train(network(), [Before(), plugin, After()], stream(), epochs=1, batch=10)
    assert max(moved) > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_old_tasks_are_forgotten_less_than_without_a_penalty(mode, penalty):
    def accuracy(strength):
        model = network(2)
        plugin = kronecker(strength, mode, penalty=penalty)
        train(model, [plugin], stream(rows=60, disjoint=False), epochs=8, lr=0.05)
        x, y = rows_of(stream(rows=60, disjoint=False)[0])
        return float((model.eval()(x).argmax(1) == y).double().mean())

    assert accuracy(1.0) > accuracy(0.0) + 0.1


@pytest.mark.parametrize("strength", [1e5, 1e30, float("inf")])
def test_weights_stay_finite_at_every_strength(strength):
    model = network()
    train(model, [kronecker(strength)], stream())
    assert all(p.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------ gates


def test_by_default_there_is_no_gate(monkeypatch):
    monkeypatch.delattr(Measurement, "relative")
    plugin = kronecker()
    assert not plugin.settings.gates
    train(network(), [plugin], stream())
    assert plugin.shared == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threshold", [0.5, Quantile(0.8)])
def test_a_gate_asks_in_the_basis_of_the_sum_and_keeps_some_directions(
    mode, threshold, monkeypatch
):
    asked = []
    relative = Measurement.relative

    def watched(self, *tasks):
        asked.append(self.basis)
        return relative(self, *tasks)

    monkeypatch.setattr(Measurement, "relative", watched)
    plugin = kronecker(0.3, mode, threshold=threshold, probability=0.9)
    ungated = kronecker(0.0, mode)
    keep, beside = Keep(plugin), Keep(ungated)
    train(network(), [plugin, ungated, keep, beside], stream())
    assert len(asked) == 2 and list(plugin.shared) == [1]
    for number, basis in enumerate(asked):
        held = keep.bases[number + 1]
        assert basis.keys() == held.keys() == {"0.weight", "3.weight"}
        assert all(torch.equal(basis[n].right, held[n].right) for n in held)
        gated = keep.gated[number + 1][number]
        zero = torch.cat([(value == 0).flatten() for value in gated.values()])
        assert 0 < float(zero.float().mean()) < 1
        # Both plugins measure the first experience at the same weights, with the same labels.
        if number == 0:
            whole = beside.gated[1][0]
            mean = mean_importance(whole, beside.bases[1])
            assert mean_importance(gated, held) == pytest.approx(mean, rel=1e-4)
            assert {n: v.shape for n, v in gated.items()} == {n: v.shape for n, v in whole.items()}
    assert all(0 <= share <= 1 for share in plugin.shared[1].values())
