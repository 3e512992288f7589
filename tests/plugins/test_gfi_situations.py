"""GFIPlugin beside what people do with their networks between and during experiences."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from counting import Counting, images
from torch import nn

from avalanche_cetl import GFIPlugin, transfer_benchmark


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
