"""GFIPlugin in a Kronecker basis: the networks it holds, what it costs, its arguments."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from gfi_runs import GATE, MODES, PENALTIES, Keep, growing, kronecker, network, train, with_heads
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vector_streams import stream


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gate", [{}, GATE], ids=["open", "gated"])
def test_a_head_that_grows_keeps_the_directions_of_its_old_part(mode, gate):
    plugin, model = kronecker(0.3, mode, **gate), growing()
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


@pytest.mark.parametrize("mode", MODES)
def test_tasks_share_the_trunk_and_not_the_heads_of_others(mode):
    plugin, model = kronecker(1.0, mode, **GATE), with_heads()
    train(model, [plugin], stream(disjoint=False, by_task=True))
    assert plugin.bases[2].keys() >= {"trunk.1.weight"}
    heads = [f"classifier.classifiers.{task}.classifier.weight" for task in range(3)]
    assert all(name in dict(model.named_parameters()) for name in heads)
    shared = plugin.shared[1]
    assert shared["trunk.1.weight"] > 0 and shared[heads[0]] == shared[heads[1]] == 0
    assert {*heads, "trunk.1.weight"} <= plugin.store.basis.keys()


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
