"""GFIPlugin in a Kronecker basis: the networks it holds, what it costs, its arguments."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from kronecker_runs import GATE, MODES, PENALTIES, Keep, kronecker, network, train
from naive_bases import quadratic
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vector_streams import stream

from avalanche_cetl import GFI, GFIPlugin, GFISettings


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(6, 8)
        self.head = IncrementalClassifier(8, 2, masking=False)

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gate", [{}, GATE], ids=["open", "gated"])
def test_a_head_that_grows_keeps_the_directions_of_its_old_part(mode, gate):
    torch.manual_seed(0)
    plugin, model = kronecker(0.3, mode, **gate), Growing()
    keep = Keep(plugin)
    train(model, [plugin, keep], stream())
    name = "head.classifier.weight"
    assert dict(model.named_parameters())[name].shape[0] == 6
    assert [len(basis[name].left) for basis in keep.bases[1:]] == [4, 6]
    assert [len(plugin.bases[e][name].left) for e in plugin.bases] == [2, 4, 6][
        -len(plugin.bases) :
    ]
    assert not keep.bases[1][name].left[2:].any()  # the new outputs are free
    assert all(p.isfinite().all() for p in model.parameters())


class Heads(MultiTaskModule):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(6, 8)
        self.classifier = MultiHeadClassifier(8, 2, masking=False)

    def forward(self, x, task_labels):
        return self.classifier(torch.tanh(self.trunk(x)), task_labels)


@pytest.mark.parametrize("mode", MODES)
def test_tasks_share_the_trunk_and_not_the_heads_of_others(mode):
    torch.manual_seed(0)
    plugin, model = kronecker(1.0, mode, **GATE), Heads()
    train(model, [plugin], stream(disjoint=False, by_task=True))
    assert plugin.bases[2].keys() >= {"trunk.weight"}
    heads = [f"classifier.classifiers.{task}.classifier.weight" for task in range(3)]
    assert all(name in dict(model.named_parameters()) for name in heads)
    shared = plugin.shared[1]
    assert shared["trunk.weight"] > 0 and shared[heads[0]] == shared[heads[1]] == 0
    assert {*heads, "trunk.weight"} <= plugin.store.basis.keys()


class Unfreezing(SupervisedPlugin):
    """Freezes the first layer for the first epoch of every experience but the first."""

    def before_training_exp(self, strategy, *args, **kwargs):
        strategy.model[0].requires_grad_(strategy.clock.train_exp_counter == 0)

    def before_training_epoch(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_epochs > 0:
            strategy.model[0].requires_grad_(True)


@pytest.mark.parametrize("gate", [{}, GATE], ids=["open", "gated"])
def test_a_layer_that_is_unfrozen_during_an_experience_is_held(gate):
    plugin, model = kronecker(1e8, **gate), network()
    run = train(model, [Unfreezing(), plugin], stream()[:1], epochs=3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    moved = []

    class Watch(SupervisedPlugin):
        def after_training_epoch(self, strategy, *args, **kwargs):
            away = {n: p.detach() - before[n] for n, p in model.named_parameters()}
            moved.append(bool(away["0.weight"].any()))
            held = plugin.gated[0]["0.weight"] > 1e-3
            assert plugin.store.basis["0.weight"].rotate(away)[held].abs().max() < 1e-4

    run.plugins.append(Watch())
    run.train(stream()[1])
    assert moved == [False, True, True]
    assert plugin.settings.gates == ("0.weight" in plugin.shared.get(0, {}))


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_is_frozen_for_an_experience_keeps_its_importance(mode):
    plugin, model = kronecker(0.0, mode), network()
    first, second, third = stream()
    run = train(model, [plugin], [first])
    before = quadratic_of(plugin, "0.weight", model)
    model[0].requires_grad_(False)
    run.train(second)
    assert "0.weight" in plugin.store.basis
    after = quadratic_of(plugin, "0.weight", model)
    assert after == pytest.approx((plugin.decay_factor or 1) * before, rel=1e-4)
    model[0].requires_grad_(True)
    run.train(third)
    assert quadratic_of(plugin, "0.weight", model) > after


def quadratic_of(plugin, name, model):
    """The sum's quadratic of one layer, a fixed distance from its anchor."""
    plugin.store.hold(dict(model.named_parameters()), {}, torch.Generator())
    (weights,) = plugin.gated.values()
    generator = torch.Generator().manual_seed(3)
    away = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    return float(quadratic({name: weights[name]}, plugin.store.basis, away))


def images():
    generator = torch.Generator().manual_seed(0)
    sets = []
    for _ in range(2):
        x, y = torch.randn(20, 2, 6, 6, generator=generator), torch.arange(20) % 3
        data = torch.utils.data.TensorDataset(x, y)
        data.targets = y
        sets.append(as_classification_dataset(data))
    return with_classes_timeline(benchmark_from_datasets(train=sets)).train_stream


@pytest.mark.parametrize("gate", [{}, GATE], ids=["open", "gated"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_convolutions_are_held_by_direction_and_norms_weight_by_weight(gate, penalty):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    plugin = kronecker(0.3, penalty=penalty, rank=5, **gate)
    keep = Keep(plugin)
    train(model, [plugin, keep], images())
    (held,) = keep.gated[1].values()
    assert keep.bases[1].keys() == {"0.weight", "3.weight", "6.weight"}
    assert held["0.weight"].shape == (4, 5) and held["3.weight"].shape == (2, 2, 5)
    for name in ("1.weight", "1.bias", "4.weight", "4.bias"):
        assert held[name].shape == dict(model.named_parameters())[name].shape
    assert all(p.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------ cost


class Counted(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("basis", ["kronecker", "diagonal"])
def test_an_iteration_costs_the_same_however_many_experiences_there_were(penalty, basis):
    plugin = kronecker(0.1, penalty=penalty, basis=basis, rank=2, **GATE)
    counts, sizes = [], []

    class Cost(SupervisedPlugin):
        def after_update(self, strategy, *args, **kwargs):
            held = plugin.store.quadratic
            with Counted() as counted:
                plugin.before_backward(strategy)
                plugin.after_update(strategy)
            counts.append(counted.count)
            layers = [t for layer in held.basis.values() for t in (layer.left, layer.right)]
            parts = [*held.importance.values(), *held.anchors.values(), *layers]
            sizes.append(sum(part.numel() for part in parts))

    train(network(2), [plugin, Cost()], stream(6, disjoint=False), epochs=1, batch=20)
    assert len(counts) == 6 and counts[0] == sizes[0] == 0 < counts[1]
    assert len(set(counts[1:])) == 1
    # Four experiences of two directions each fill a layer of eight.
    assert len(set(sizes[4:])) == 1 and sizes[1] <= sizes[-1]


# ------------------------------------------------------------------ arguments


def test_gfi_takes_the_basis():
    for gfi in ({"basis": "kronecker", "rank": 3}, GFISettings(basis="kronecker", rank=3)):
        model = network()
        run = GFI(
            model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), dwa_lambda=0.3,
            gfi=gfi, train_mb_size=5, evaluator=None,
        )  # fmt: skip
        for experience in stream():
            run.train(experience)
        (plugin,) = (one for one in run.plugins if isinstance(one, GFIPlugin))
        assert plugin.bases[2]["0.weight"].shape == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"basis": "eigen"}, ValueError, "'diagonal', 'kronecker'"),
        ({"rank": 0}, ValueError, "rank=0"),
        ({"rank": -3}, ValueError, "rank=-3"),
        ({"rank": 2.0}, TypeError, "rank=2.0"),
        ({"rank": None}, TypeError, "rank=None"),
        ({"threshold": 2}, ValueError, r"outside \[0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kronecker(**arguments)


def test_a_layer_that_shrinks_is_refused():
    model = network()
    run = train(model, [kronecker()], stream()[:1])
    model[3] = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="may grow"):
        run.train(stream()[1])
