"""GFIPlugin beside what people do with their networks between and during experiences."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.core import SupervisedPlugin
from avalanche.models import MultiTaskModule
from avalanche.models.packnet import PackNetPlugin, packnet_simple_mlp
from avalanche.training.supervised import Naive
from counting import Counting, images
from networks import Of
from torch import nn
from torch.nn.utils import parametrizations, prune
from vector_streams import stream as vector_stream

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


def parts():
    return Of(
        lambda m, x: m.head(m.features(x)),
        features=nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh()), head=nn.Linear(8, 6),
    )  # fmt: skip


def compiled(module):
    return torch.compile(module, backend="eager")


def whole(strategy):
    strategy.model = compiled(strategy.model)


def parallel(strategy):
    strategy.model = nn.DataParallel(compiled(strategy.model))


def part(strategy):
    strategy.model.features = compiled(strategy.model.features)


def layer(strategy):
    strategy.model.features[1] = nn.DataParallel(strategy.model.features[1])


def both(strategy):
    strategy.model.features = nn.DataParallel(compiled(strategy.model.features))
    strategy.model = nn.DataParallel(strategy.model)


def in_place(strategy):
    strategy.model.features.compile(backend="eager")


@pytest.mark.parametrize("penalty", ["proximal", "loss"])
@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
@pytest.mark.parametrize("wrap", [whole, parallel, part, layer, both, in_place])
def test_a_network_that_is_wrapped_between_two_experiences_trains_as_without(wrap, basis, penalty):
    found = []
    for change in (lambda strategy: None, wrap):
        torch.manual_seed(0)
        model = parts()
        # A strength with an effect that shows, and the gate, which reads the wrapped network.
        plugin = GFIPlugin(
            2.0, samples=16, basis=basis, penalty=penalty, threshold=0.3, probability=0.9
        )
        s = naive(model, plugin)
        first, second = stream()
        s.train(first)
        change(s)
        s.train(second)
        found.append((dict(plugin.importances[1]), [p.detach() for p in model.parameters()]))
    assert found[0][0].keys() == found[1][0].keys()
    for name, wanted in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], wanted, rtol=1e-3, atol=1e-5)
    for now, wanted in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(now, wanted, rtol=1e-4, atol=1e-5)


def test_a_network_that_was_wrapped_is_held_when_it_is_no_more():
    model = parts()
    model.features = compiled(model.features)
    s = naive(model, strong())
    first, second = stream()
    s.train(first)
    model.features = model.features._orig_mod
    before = model.features[1].weight.clone()
    s.train(second)
    assert (model.features[1].weight - before).norm() < 1e-3


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.2)


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
@pytest.mark.parametrize(
    "rename", [pruned, parametrizations.weight_norm, parametrizations.orthogonal]
)
def test_a_weight_that_is_renamed_between_two_experiences_is_refused_before_training(rename, basis):
    model = network()
    s = naive(model, strong(basis=basis))
    first, second = stream()
    s.train(first)
    rename(model[3])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"holds '3\.weight' \(1 of 4"):
        s.train(second)
    assert all(map(torch.equal, before, model.parameters()))
    if rename is pruned:  # undone, as the message says
        prune.remove(model[3], "weight")
        s.train(second)


def test_a_layer_that_was_reparametrised_from_the_start_is_held():
    model = network()
    parametrizations.weight_norm(model[1])
    pruned(model[3])
    s = naive(model, strong())
    first, second = stream()
    s.train(first)
    before = [p.detach().clone() for p in model.parameters()]
    s.train(second)
    for now, then in zip(model.parameters(), before, strict=True):
        assert (now - then).norm() < 1e-2


@pytest.mark.parametrize("penalty", ["proximal", "loss"])
def test_a_weight_that_is_renamed_during_an_experience_is_refused_at_the_next_step(penalty):
    class Late(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1 and strategy.clock.train_exp_epochs == 0:
                pruned(strategy.model[1])

    model = network()
    plugin = GFIPlugin(
        0.1, samples=16, threshold=0, probability=1, penalty=penalty, basis="diagonal"
    )
    s = naive(model, Late(), plugin, epochs=2)
    first, second = stream()
    s.train(first)
    with pytest.raises(ValueError, match=r"holds '1\.weight'"):
        s.train(second)


def test_a_network_with_other_names_is_refused():
    s = naive(network(), strong())
    first, second = stream()
    s.train(first)
    s.model = nn.ModuleDict({"inner": network()})
    s.model.forward = s.model["inner"].forward
    with pytest.raises(ValueError, match=r"holds '1\.bias'.*'inner\.1\.bias'"):
        s.train(second)


@pytest.mark.parametrize("penalty", ["proximal", "loss"])
@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_half_precision_networks_have_importances_and_anchors_of_single_precision(basis, penalty):
    model = network().bfloat16()
    model = nn.Sequential(Of(lambda m, x: x.bfloat16()), *model)
    strength = 1e6 if penalty == "proximal" else 0.01
    plugin = GFIPlugin(
        strength, samples=16, basis=basis, penalty=penalty, threshold=0, probability=1
    )
    kinds = set()

    class Watch(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            held = plugin.store.quadratic
            kinds.update(t.dtype for t in (*held.importance.values(), *held.anchors.values()))

    s = naive(model, plugin, Watch())
    first, second = stream()
    s.train(first)
    before = model[2].weight.detach().clone()
    s.train(second)
    assert kinds == {torch.float32}
    for kept in (plugin.importances[1], plugin.saved_params[1]):
        assert {value.dtype for value in kept.values()} == {torch.float32}
    assert model[2].weight.dtype == torch.bfloat16
    assert (penalty == "loss") or (model[2].weight - before).norm() < 1e-2


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
    for plugins in ([], [GFIPlugin(0.0, samples=16, basis="diagonal")]):
        torch.manual_seed(0)
        model = Counting()
        s = naive(model, *plugins)
        torch.manual_seed(1)
        for experience in transfer_benchmark([images(), images()], [images()] * 2).train_stream:
            s.train(experience)
        found.append((model.passes, model.average, model.layer.weight.detach()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("gate", [{}, {"threshold": 0, "probability": 1}], ids=["gate", "no gate"])
def test_an_experience_without_images_is_refused_by_its_number(gate, empty):
    sets = [experience.dataset for experience in vector_stream(2, disjoint=False)]
    sets[empty] = sets[empty].subset([])
    experiences = benchmark_from_datasets(train=sets).train_stream
    torch.manual_seed(0)
    s = naive(nn.Sequential(nn.Linear(6, 2)), GFIPlugin(1.0, samples=8, **gate))
    for experience in experiences[:empty]:
        s.train(experience)
    with pytest.raises(ValueError, match=f"experience {empty} of the training has no images"):
        s.train(experiences[empty])


def packnet_run(*plugins):
    """Train PackNet on three tasks; return its weights and masks."""
    torch.manual_seed(0)
    model = packnet_simple_mlp(num_classes=6, input_size=6, hidden_size=8)
    s = naive(model, PackNetPlugin(1, 0.5), *plugins, epochs=2)
    torch.manual_seed(1)
    experiences = vector_stream(3, disjoint=False, by_task=True)
    for experience in experiences:
        s.train(experience)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_the_gate_leaves_packnet_as_it_is_alone(basis, fisher):
    gated = GFIPlugin(0.0, samples=8, basis=basis, fisher=fisher, threshold=0.5, probability=0.9)
    wanted, found = packnet_run(), packnet_run(gated)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert all(value.isfinite().all() for value in gated.importances[2].values())
    # PackNet lets no gradient reach the weights of tasks that are done: nothing is left to hold.
    assert gated.shared and not any(value.any() for value in gated.importances[2].values())


class Masked(MultiTaskModule):
    """A network that writes the mask of a task into its buffer before it reads it."""

    def __init__(self, in_place=True):
        super().__init__()
        self.layer, self.in_place = nn.Linear(6, 6), in_place
        self.masks = [torch.tensor([1.0, 0, 1, 0, 1, 0]), torch.tensor([0, 1.0, 1, 0, 0, 1])]
        self.register_buffer("mask", torch.ones(6))

    def forward(self, x, task_labels):
        mask = self.masks[int(task_labels[0])]
        if self.in_place:
            self.mask.copy_(mask)
            mask = self.mask
        return self.layer(x) * mask


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_heads_that_write_the_same_buffer_share_what_heads_with_their_own_do(basis):
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        plugin = GFIPlugin(
            1.0, samples=16, basis=basis, threshold=0.3, probability=0.9, normalize=False
        )
        s = naive(Masked(in_place), plugin)
        torch.manual_seed(1)
        for experience in vector_stream(2, disjoint=False, by_task=True):
            s.train(experience)
        found.append((plugin.shared[0], s.model.layer.weight.detach()))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])
