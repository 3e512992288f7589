import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EWCPlugin
from gfi_runs import (
    GATE,
    MODES,
    OPEN,
    SAMPLED,
    Losses,
    assert_close,
    growing,
    network,
    train,
    with_heads,
)
from torch import nn
from vector_streams import stream

from avalanche_cetl import GFIPlugin, Quantile
from avalanche_cetl.information.generalized import dwa_penalty


@pytest.mark.parametrize("mode", [("separate", None), ("online", 0.5)])
def test_importances_are_ewcs_where_the_gate_keeps_everything(mode):
    settings = {"fisher": "empirical", "normalize": False, "basis": "diagonal", **OPEN}
    ours = GFIPlugin(0.3, *mode, True, **settings)
    theirs = EWCPlugin(0.0, *mode, True)  # measures alone, at the same weights
    train(network(), [ours, theirs], stream(), batch=1)
    for experience in range(3):
        wanted = {name: one.data for name, one in theirs.importances[experience].items()}
        assert_close(ours.importances[experience], wanted, rtol=1e-5)


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("gate", [OPEN, GATE], ids=["open", "gated"])
def test_the_penalty_in_the_loss_is_eq_11_with_the_gated_importances(mode, gate, basis):
    arguments = {**SAMPLED, "penalty": "loss", "basis": basis, **mode, **gate}
    plugin, before, found = GFIPlugin(0.3, **arguments), Losses(), []

    class Check(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            params = dict(strategy.model.named_parameters())
            wanted = [
                dwa_penalty(params, plugin.saved_params[e], weights, 0.3, plugin.store.basis)
                for e, weights in plugin.gated.items()
            ]
            added = strategy.loss - before.loss
            found.append((float(added.detach()), sum(float(one.detach()) for one in wanted)))

    train(network(), [before, plugin, Check()], stream())
    assert found[0] == (0, 0) and max(wanted for _, wanted in found) > 1e-3
    for added, wanted in found:
        assert added == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("threshold", [0.5, Quantile(0.8)])
def test_the_gate_keeps_some_of_the_old_importance(fisher, threshold):
    plugin = GFIPlugin(1.0, fisher=fisher, threshold=threshold, normalize=False, basis="diagonal")

    seen = []

    class Watch(GFIPlugin):
        def before_training_exp(self, strategy, **kwargs):
            seen.append(copy.deepcopy(plugin.gated))

    train(network(), [plugin, Watch(0.0)], stream())
    assert seen[0] == {} and list(seen[1]) == [0] and list(seen[2]) == [0, 1]
    for experience, weights in seen[2].items():
        stored = plugin.importances[experience]
        kept = torch.cat([(weights[n] == stored[n]).flatten() for n in stored])
        zero = torch.cat([(weights[n] == 0).flatten() for n in stored])
        assert (kept | zero).all() and 0 < zero.float().mean() < 1
    assert all(0 <= share <= 1 for share in plugin.shared[1].values())


def test_frozen_parameters_are_neither_measured_nor_held():
    model = network()
    model[0].requires_grad_(False)
    plugin = GFIPlugin(1.0, basis="diagonal")
    train(model, [plugin], stream())
    assert set(plugin.importances[0]) == {"3.weight", "3.bias"} == set(plugin.saved_params[0])


def test_a_head_that_grows_keeps_its_old_part():
    plugin = GFIPlugin(1.0, normalize=False, basis="diagonal", **OPEN)
    run = train(growing(), [plugin], stream())
    name = "head.classifier.weight"
    assert dict(run.model.named_parameters())[name].shape[0] == 6
    assert plugin.importances[0][name].shape[0] == 2
    assert plugin.saved_params[0][name].shape[0] == 6  # grown with the head, free there


def test_tasks_share_the_trunk_and_not_the_heads_of_others():
    plugin = GFIPlugin(1.0, basis="diagonal")
    run = train(with_heads(), [plugin], stream(disjoint=False, by_task=True))
    trunk = [n for n in plugin.importances[2] if "classifier" not in n]
    assert any(plugin.shared[1][name] > 0 for name in trunk)
    heads = [n for n in dict(run.model.named_parameters()) if "classifiers.0" in n]
    assert heads and all(float(plugin.importances[0][n].sum()) > 0 for n in heads)
    # Task 2 does not read the head of task 0: nothing of it is shared.
    assert all(plugin.shared[0][n] == 0 for n in heads)


def test_the_seed_fixes_the_gate():
    def run(seed):
        plugin = GFIPlugin(0.5, seed=seed, samples=8, basis="diagonal")
        train(network(), [plugin], stream())
        return plugin.importances[2]["3.weight"]

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_a_layer_that_shrinks_is_refused(basis):
    run = train(network(), [GFIPlugin(1.0, basis=basis)], stream()[:1])
    run.model[3] = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="may grow"):
        run.train(stream()[1])
