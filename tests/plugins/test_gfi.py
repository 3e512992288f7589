import copy

import pytest
import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EWCPlugin
from avalanche.training.supervised import Naive
from torch import nn
from vector_streams import stream

from avalanche_cetl import GFIPlugin, Quantile


def network(classes=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, classes))


def strategy(model, *plugins, epochs=2, batch=5, lr=0.1):
    return Naive(
        model=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=epochs,
        plugins=list(plugins),
        evaluator=None,
    )


def train(strategy, experiences):
    torch.manual_seed(1)
    for experience in experiences:
        strategy.train(experience)
    return strategy


@pytest.mark.parametrize("mode", [("separate", None), ("online", 0.5)])
def test_importances_are_ewcs_where_the_gate_keeps_everything(mode):
    ours = GFIPlugin(
        0.3,
        *mode,
        True,
        threshold=0,
        probability=1,
        fisher="empirical",
        normalize=False,
        basis="diagonal",
    )
    theirs = EWCPlugin(0.0, *mode, True)  # measures alone, at the same weights
    train(strategy(network(), ours, theirs, batch=1), stream())
    for experience in range(3):
        for name, wanted in theirs.importances[experience].items():
            found = ours.importances[experience][name]
            torch.testing.assert_close(found, wanted.data, rtol=1e-5, atol=1e-8)


def test_the_penalty_is_eq_11_with_the_gated_importances():
    plugin = GFIPlugin(0.3, penalty="loss", basis="diagonal")
    penalties = []

    class Check(EWCPlugin):
        def before_backward(self, strategy, **kwargs):
            wanted = sum(
                0.3 / 2 * (weights[n] * (p - plugin.saved_params[e][n]) ** 2).sum()
                for e, weights in plugin.gated.items()
                for n, p in strategy.model.named_parameters()
            )
            penalties.append((float(strategy.loss) - self.loss, float(wanted)))

    class Before(EWCPlugin):
        def before_backward(self, strategy, **kwargs):
            check.loss = float(strategy.loss)

    check = Check(0.0)
    train(strategy(network(), Before(0.0), plugin, check), stream())
    assert penalties[0] == (0, 0) and max(wanted for _, wanted in penalties) > 1e-3
    for found, wanted in penalties:
        assert abs(found - wanted) <= 1e-5 * (1 + wanted)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("threshold", [0.5, Quantile(0.8)])
def test_the_gate_keeps_some_of_the_old_importance(fisher, threshold):
    plugin = GFIPlugin(1.0, fisher=fisher, threshold=threshold, normalize=False, basis="diagonal")

    seen = []

    class Watch(GFIPlugin):
        def before_training_exp(self, strategy, **kwargs):
            seen.append(copy.deepcopy(plugin.gated))

    train(strategy(network(), plugin, Watch(0.0)), stream())
    assert seen[0] == {} and list(seen[1]) == [0] and list(seen[2]) == [0, 1]
    for experience, weights in seen[2].items():
        stored = plugin.importances[experience]
        kept = torch.cat([(weights[n] == stored[n]).flatten() for n in stored])
        zero = torch.cat([(weights[n] == 0).flatten() for n in stored])
        assert (kept | zero).all() and 0 < zero.float().mean() < 1
    assert all(0 <= share <= 1 for share in plugin.shared[1].values())


def test_the_penalty_holds_the_weights_that_matter():
    def distance(lam):
        plugin = GFIPlugin(lam, threshold=0, probability=1, basis="diagonal")
        run = train(strategy(network(), plugin, epochs=8, lr=0.02), stream())
        fisher, anchors = plugin.importances[1], plugin.saved_params[1]
        params = dict(run.model.named_parameters())
        return sum(float((fisher[n] * (params[n] - anchors[n]) ** 2).sum()) for n in fisher)

    assert distance(0.5) < 0.5 * distance(0.0)


def test_frozen_parameters_are_neither_measured_nor_held():
    model = network()
    model[0].requires_grad_(False)
    plugin = GFIPlugin(1.0, basis="diagonal")
    train(strategy(model, plugin), stream())
    assert set(plugin.importances[0]) == {"3.weight", "3.bias"} == set(plugin.saved_params[0])


def test_a_head_that_grows_keeps_its_old_part():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Linear(6, 8)
            self.head = IncrementalClassifier(8, 2, masking=False)

        def forward(self, x):
            return self.head(torch.tanh(self.trunk(x)))

    torch.manual_seed(0)
    plugin = GFIPlugin(1.0, threshold=0, probability=1, normalize=False, basis="diagonal")
    run = train(strategy(Growing(), plugin), stream())
    assert run.model.head.classifier.weight.shape[0] == 6
    name = "head.classifier.weight"
    assert plugin.importances[0][name].shape[0] == 2
    assert plugin.saved_params[0][name].shape[0] == 6  # grown with the head, free there


def test_tasks_share_the_trunk_and_not_the_heads_of_others():
    class Heads(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Linear(6, 8)
            # Masks of units fail on benchmarks made of data sets (Avalanche 0.6 indexes by a set).
            self.classifier = MultiHeadClassifier(8, 2, masking=False)

        def forward(self, x, task_labels):
            return self.classifier(torch.tanh(self.trunk(x)), task_labels)

    torch.manual_seed(0)
    plugin = GFIPlugin(1.0, basis="diagonal")
    run = train(strategy(Heads(), plugin), stream(disjoint=False, by_task=True))
    trunk = [n for n in plugin.importances[2] if "classifier" not in n]
    assert any(plugin.shared[1][name] > 0 for name in trunk)
    heads = [n for n in dict(run.model.named_parameters()) if "classifiers.0" in n]
    assert heads and all(float(plugin.importances[0][n].sum()) > 0 for n in heads)
    # Task 2 does not read the head of task 0: nothing of it is shared.
    assert all(plugin.shared[0][n] == 0 for n in heads)


def test_the_seed_fixes_the_gate():
    def run(seed):
        plugin = GFIPlugin(0.5, seed=seed, samples=8, basis="diagonal")
        train(strategy(network(), plugin), stream())
        return plugin.importances[2]["3.weight"]

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "both"}, "separate"),
        ({"mode": "online"}, "decay_factor"),
        ({"decay_factor": 0.5}, "online"),
        ({"dwa_lambda": -1}, ">= 0"),
        ({"dwa_lambda": float("nan")}, ">= 0"),
        ({"threshold": 2}, r"outside \[0, 1\]"),
        ({"estimator": "kde"}, "histogram"),
        ({"samples": 1}, "at least 2"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GFIPlugin(**{"dwa_lambda": 1.0, "basis": "diagonal", **arguments})


def test_a_layer_that_shrinks_is_refused():
    plugin = GFIPlugin(1.0, basis="diagonal")
    run = strategy(network(), plugin)
    train(run, stream()[:1])
    run.model[3] = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="may grow"):
        train(run, stream()[1:2])


def test_online_importance_outlives_a_freeze():
    plugin = GFIPlugin(1.0, "online", 0.5, threshold=0, probability=1, basis="diagonal")
    run = strategy(network(), plugin)
    first, second, third = stream()
    train(run, [first])
    stored = plugin.importances[0]["0.weight"].clone()
    run.model[0].requires_grad_(False)
    train(run, [second])
    run.model[0].requires_grad_(True)
    torch.testing.assert_close(plugin.importances[1]["0.weight"], 0.5 * stored)
    train(run, [third])
    assert "0.weight" in plugin.importances[2]


@pytest.mark.parametrize("decay", [-1.0, float("nan"), float("inf")])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(ValueError, match="decay_factor"):
        GFIPlugin(1.0, "online", decay, basis="diagonal")


@pytest.mark.parametrize("samples", [2.5, "a"])
def test_numbers_of_images_are_whole(samples):
    with pytest.raises(TypeError, match="samples"):
        GFIPlugin(1.0, samples=samples, basis="diagonal")


def test_the_argument_of_ewc_is_taken_as_ours_with_a_warning():
    with pytest.warns(FutureWarning, match=r"dwa_lambda=2\.0") as caught:
        assert (
            GFIPlugin(ewc_lambda=2.0, mode="online", decay_factor=0.5, basis="diagonal").dwa_lambda
            == 2.0
        )
    assert [one.filename for one in caught] == [__file__]
    with pytest.raises(TypeError, match="give dwa_lambda= alone"):
        GFIPlugin(1.0, ewc_lambda=2.0, basis="diagonal")
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=">= 0"):
        GFIPlugin(ewc_lambda=-1.0, basis="diagonal")
