"""GFIPlugin in a Kronecker basis: its importances, penalties and gates."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from gfi_runs import MODES, Keep, assert_close, kronecker, network, rows_of, train
from vector_streams import stream

from avalanche_cetl import Quantile
from avalanche_cetl.allocation.measure import Measurement
from avalanche_cetl.allocation.merged_basis import MergedBasis
from avalanche_cetl.allocation.output_likelihood import OutputLikelihood
from avalanche_cetl.information.fisher import fisher_information
from avalanche_cetl.information.generalized import (
    mean_importance,
    normalize_importance,
)
from avalanche_cetl.information.kronecker import kronecker_basis


class Watched(OutputLikelihood):
    """Keeps the targets that were drawn last."""

    def draw(self, *arguments):
        self.drawn = super().draw(*arguments)
        return self.drawn


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
            x, y, _ = rows_of(strategy.experience)
            targets = plugin.measurer.likelihood.drawn if fisher == "sampled" else y
            wanted = fisher_information(
                model, x, "empirical", targets=targets, basis=plugin.bases[now]
            )
            assert_close(plugin.importances[now], wanted, rtol=1e-5)
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
            assert_close(keep.gated[now + 1][now], wanted.importance, rtol=1e-4)
        if mode == "online":
            assert_close(plugin.importances[now], wanted.importance, rtol=1e-4)
    assert keep.gated[0] == {}


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
