"""GFIPlugin beside what people do with their networks between and during experiences."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_cetl import (
    CETLStrategy,
    CoupledModel,
    GFIPlugin,
    GFISettings,
    ModuleEncoder,
    transfer_benchmark,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))


def stream():
    generator = torch.Generator().manual_seed(0)
    sets = []
    for task in range(2):
        y = torch.arange(24) % 6
        x = torch.randn(24, 6, generator=generator)
        x[torch.arange(24), y] += 2.0 + task
        sets.append((x.view(24, 1, 6, 1), y))
    return transfer_benchmark(sets, [sets[0]] * 2).train_stream


def naive(model, *plugins, epochs=1):
    return Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=nn.CrossEntropyLoss(), train_mb_size=6, train_epochs=epochs,
        plugins=list(plugins), evaluator=None,
    )  # fmt: skip


def strong(**arguments):
    return GFIPlugin(1e6, samples=16, threshold=0, probability=1, **arguments)


@pytest.mark.parametrize(
    "wrap",
    [lambda m: torch.compile(m, backend="eager"), nn.DataParallel],
    ids=["compiled", "data parallel"],
)
def test_a_network_that_is_wrapped_between_two_experiences_is_held_all_the_same(wrap):
    model = network()
    s = naive(model, strong())
    first, second = stream()
    s.train(first)
    before = model[1].weight.clone()
    s.model = wrap(model)
    s.train(second)
    assert (model[1].weight - before).norm() < 1e-3


def test_a_network_with_other_names_is_refused():
    s = naive(network(), strong())
    first, second = stream()
    s.train(first)
    s.model = nn.ModuleDict({"inner": network()})
    s.model.forward = s.model["inner"].forward
    with pytest.raises(ValueError, match=r"holds '1\.bias'.*'inner\.1\.bias'"):
        s.train(second)


class Unfreezing(SupervisedPlugin):
    """Freezes the first layer for the first epoch of every experience but the first."""

    def before_training_exp(self, strategy, *args, **kwargs):
        strategy.model[1].requires_grad_(strategy.clock.train_exp_counter == 0)

    def before_training_epoch(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_epochs > 0:
            strategy.model[1].requires_grad_(True)


def test_a_layer_that_is_unfrozen_during_an_experience_is_held():
    model = network()
    s = naive(model, Unfreezing(), strong(), epochs=3)
    first, second = stream()
    s.train(first)
    before = model[1].weight.clone()
    s.train(second)
    assert (model[1].weight - before).norm() < 1e-3


class Counting(nn.Module):
    """Counts its passes, averages its input in training and in evaluation, keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.layer, self.passes = nn.Linear(64, 6), 0
        self.register_buffer("average", torch.zeros(64))
        self.largest = 0

    def forward(self, x):
        x = x.flatten(1)
        self.passes += 1
        self.largest = max(self.largest, len(x))
        self.average.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.layer(x - self.average)


def images(count=24):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 6


def test_a_plugin_of_strength_0_leaves_a_network_that_counts_its_passes_as_naive_does():
    found = []
    for plugins in ([], [GFIPlugin(0.0, samples=16)]):
        torch.manual_seed(0)
        model = Counting()
        s = naive(model, *plugins)
        torch.manual_seed(1)
        for experience in transfer_benchmark([images(), images()], [images()] * 2).train_stream:
            s.train(experience)
        found.append((model.passes, model.average, model.layer.weight.detach()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


def test_coupling_leaves_no_trace_in_the_target():
    model = Counting()
    source = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), input_shape=(1, 8, 8))
    CoupledModel.build(source, model, (1, 8, 8))
    assert model.passes == 0 and model.largest == 0 and not model.average.any()


def test_measuring_leaves_no_trace_in_cetls_target():
    passes = []
    for variant in ("e", "gfi"):
        torch.manual_seed(0)
        model = Counting()
        source = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), input_shape=(1, 8, 8))
        coupled = CoupledModel.build(source, model, (1, 8, 8))
        CETLStrategy(
            model=coupled, optimizer=torch.optim.Adam(coupled.parameters(), 1e-3), variant=variant,
            train_mb_size=6, gfi=GFISettings(samples=8), evaluator=None,
        ).train(transfer_benchmark(images(), images()).train_stream)  # fmt: skip
        passes.append(model.passes)
    assert passes[0] == passes[1]


def test_images_are_drawn_for_in_pieces():
    largest = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 6)

        def forward(self, x):
            largest.append(len(x))
            return self.layer(x.flatten(1))

    s = naive(Watching(), GFIPlugin(0.1, samples=10_000, threshold=0, probability=1))
    plugin = s.plugins[0]
    torch.manual_seed(0)
    tasks = torch.zeros(600, dtype=torch.long)
    x = torch.rand(600, 1, 8, 8)
    generator = torch.Generator().manual_seed(3)
    drawn = plugin.readout.draw(s.model, x, tasks, generator)
    assert max(largest) == 256 and drawn.shape == (600,)


@pytest.mark.parametrize("decay", [-1.0, float("nan"), float("inf")])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(ValueError, match="decay_factor"):
        GFIPlugin(1.0, "online", decay)


@pytest.mark.parametrize("samples", [2.5, "a", None])
def test_numbers_of_images_are_whole(samples):
    with pytest.raises(TypeError, match="samples"):
        GFIPlugin(1.0, samples=samples)
