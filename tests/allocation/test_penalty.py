"""WeightPenalty in loops of one's own, without Avalanche."""

import copy
import math
from functools import cache

import pytest
import torch
from avalanche.training.supervised import Naive
from networks import Of
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from avalanche_cetl import GFIPlugin, WeightPenalty, transfer_benchmark

GATE = {"threshold": 0.5, "probability": 0.9}
OPEN = {"threshold": 0.0, "probability": 1.0}


def network(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, classes))


def tasks(count=2, rows=24):
    """Images whose class is where they are bright; every task has another order of the pixels."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        y = torch.arange(rows) % 3
        x = 0.3 * torch.randn(rows, 16, generator=generator)
        x[torch.arange(rows), y] += 2.0
        order = torch.randperm(16, generator=generator)
        found.append((x[:, order].view(rows, 1, 4, 4), y))
    return found


def optimizer_of(model, kind="sgd"):
    if kind == "adam":
        return torch.optim.Adam(model.parameters(), 1e-2)
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def learn(model, optimizer, penalty, images, labels, epochs=2, batch=6):
    for _ in range(epochs):
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            loss = F.cross_entropy(model(x), y) + penalty.loss(model, optimizer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            penalty.step(model, optimizer)


def run(penalty, stream, kind="sgd", pretrained=None, model=None, **gated):
    """Train on a stream of tasks; return the network."""
    model = network() if model is None else model
    optimizer = optimizer_of(model, kind)
    if pretrained is not None:
        penalty.remember(model, pretrained)
    for images, labels in stream:
        if penalty.settings.gates:
            penalty.gate(model, images, labels)
        learn(model, optimizer, penalty, images, labels, **gated)
        penalty.remember(model, images, labels)
    return model


def same(model, other):
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


# ------------------------------------------------------------------ the plugin is the same


ARGUMENTS = {
    "default": {},
    "diagonal": {"basis": "diagonal"},
    "no gate": {"basis": "diagonal", **OPEN},
    "online": {"basis": "diagonal", "mode": "online", "decay_factor": 0.5},
    "kronecker": {"fisher": "sampled", "normalize": True},
    "gated kronecker": {"mode": "online", "decay_factor": 0.5, "fisher": "sampled", **GATE},
    "few images": {"samples": 8, "unseen": 0.5},
    "empirical": {"basis": "diagonal", "fisher": "empirical", "samples": 8, "seed": 3},
}


@cache
def without(kind):
    return run(WeightPenalty(0.0), tasks(3), kind)


#: Each with two of the three forms of the penalty, one of them from a pretrained network on.
FORMS = ("proximal", "loss", "auto")
ROWS = [
    pytest.param(name, FORMS[(i + j) % 3], bool(j), id=f"{name}-{FORMS[(i + j) % 3]}")
    for i, name in enumerate(ARGUMENTS)
    for j in (0, 1)
]


@pytest.mark.parametrize(("name", "penalty", "pretrained"), ROWS)
def test_the_plugin_and_a_loop_of_one_s_own_train_the_same_weights(name, penalty, pretrained):
    stream = tasks(3)
    pretrained = tasks(4)[3][0] if pretrained and name != "empirical" else None
    own = WeightPenalty(2.0, penalty=penalty, **ARGUMENTS[name])
    kind = "adam" if penalty == "auto" else "sgd"
    mine = run(own, stream, kind, pretrained=pretrained)
    plugin = GFIPlugin(2.0, penalty=penalty, **ARGUMENTS[name])
    model = network()
    if pretrained is not None:
        plugin.remember(model, pretrained)
    strategy = Naive(
        model=model, optimizer=optimizer_of(model, kind), criterion=nn.CrossEntropyLoss(),
        train_mb_size=6, train_epochs=2, plugins=[plugin], evaluator=None,
    )  # fmt: skip
    for experience in transfer_benchmark(stream, [stream[0]] * 3).train_stream:
        strategy.train(experience, shuffle=False)
    assert same(mine, model) and not same(mine, without(kind))
    last = len(own.importances) - 1 if own.keep_importance_data else max(own.importances)
    first = -1 if pretrained is not None else 0
    assert max(plugin.importances) == 2 and last == 2 - first
    if plugin.keep_importance_data:
        assert list(plugin.importances) == list(range(first, 3))


# ------------------------------------------------------------------ what it does


def error(model, images, labels):
    with torch.no_grad():
        return float(F.cross_entropy(model(images), labels))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("penalty", ["proximal", "loss"])
@pytest.mark.parametrize(("basis", "held"), [("diagonal", 2.0), ("kronecker", 2.0), (None, 5.0)])
def test_an_old_task_is_forgotten_less_than_without(basis, held, penalty, kind):
    stream, found = tasks(2, rows=60), {}
    for strength in (0.0, held):
        own = WeightPenalty(strength, basis=basis, penalty=penalty, **OPEN)
        model = run(own, stream, kind, epochs=10)
        found[strength] = error(model, *stream[0])
    assert found[held] < 0.8 * found[0.0]


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
@pytest.mark.parametrize("mode", [{}, {"mode": "online", "decay_factor": 0.9}])
def test_what_a_pretrained_network_knows_is_held_from_the_first_task_on(basis, mode):
    known, new = tasks(2, rows=60)
    pretrained = run(WeightPenalty(0.0, **OPEN), [known], epochs=10)
    found = {}
    for strength in (0.0, 20.0):
        own = WeightPenalty(strength, basis=basis, **mode, **OPEN)
        model = run(own, [new], pretrained=known[0], model=copy.deepcopy(pretrained), epochs=10)
        found[strength] = error(model, *known)
        assert sorted(own.shared) == [] and max(own.importances) == 1
    assert found[20.0] < 0.5 * found[0.0]


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
@pytest.mark.parametrize("keep", [False, True])
def test_every_task_counts_whose_number_is_given_again_or_forgotten(basis, keep):
    (images, labels), _ = tasks()
    own = WeightPenalty(1.0, basis=basis, keep_importance_data=keep, **OPEN)
    plugin = GFIPlugin(1.0, basis=basis, keep_importance_data=keep, **OPEN)
    model = network()
    for number in (0, None, 0, 1):
        own.remember(model, images, labels, number=number)
    for number in (None, 0, None, 0):
        plugin.remember(model, images, labels, number=number)
    assert sorted(own.store.numbers) == [0, 1, 2, 3] and own.store.total == 4
    assert sorted(plugin.store.numbers) == [-3, -2, -1, 0] and plugin.store.total == 4


def test_how_far_the_outputs_have_moved_is_a_part_of_the_state():
    stream = tasks(2)
    own, later = WeightPenalty(1.0), WeightPenalty(1.0)
    run(own, stream)
    later.load_state_dict(own.state_dict())
    assert own.moved is not None and later.moved == own.moved


def test_the_loss_is_the_quadratic_and_the_step_does_nothing():
    (images, _), _ = tasks()
    own, model = (
        WeightPenalty(3.0, basis="diagonal", penalty="loss", normalize=False, **OPEN),
        network(),
    )
    assert float(own.loss(model)) == 0
    own.remember(model, images)
    optimizer = optimizer_of(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    before = copy.deepcopy(model)
    own.step(model, optimizer)
    assert same(model, before)
    wanted = sum(
        1.5 * (own.importances[0][n] * (p - own.saved_params[0][n]).square()).sum()
        for n, p in model.named_parameters()
    )
    found = own.loss(model)
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert model[1].weight.grad.any()


def test_a_task_with_a_gate_begins_with_the_gate():
    (images, _), new = tasks()
    own, model = WeightPenalty(1.0, basis="diagonal", **GATE), network()
    own.remember(model, images)
    for act in (lambda: own.loss(model), lambda: own.step(model, optimizer_of(model))):
        with pytest.raises(ValueError, match=r"threshold=0\.5 .*call gate\(model"):
            act()
    own.gate(model, *new)
    assert 0 < own.shared[0]["1.weight"] < 1
    assert 0 < float((own.gated[0]["1.weight"] == 0).float().mean()) < 1
    own.step(model, optimizer_of(model))


def test_a_head_may_grow_between_the_two_halves_of_a_gate():
    (images, _), (new, labels) = tasks()
    own, model = WeightPenalty(1.0, basis="diagonal", **GATE), network(3)
    own.remember(model, images)
    own.draw(model, new, labels)
    old, model[3] = model[3], nn.Linear(8, 5)
    with torch.no_grad():
        model[3].weight[:3], model[3].bias[:3] = old.weight, old.bias
    own.hold(model)
    held = own.store.quadratic.importance["3.weight"]
    assert held.shape == (5, 8) and not held[3:].any() and held[:3].any()


def test_images_come_as_tensors_or_as_data_sets():
    ((x, y),) = tasks(1)
    found = []
    for given in ((x, y), (TensorDataset(x, y),), (list(zip(x, y.tolist(), strict=True)),)):
        own = WeightPenalty(1.0, fisher="empirical", samples=7, basis="diagonal")
        own.remember(network(), *given)
        found.append(own.importances[0]["1.weight"])
    plain = WeightPenalty(1.0, basis="diagonal")
    plain.remember(network(), TensorDataset(x))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert found[0].any() and plain.importances[0]["1.weight"].any()


@pytest.mark.parametrize(
    "given",
    [
        lambda x, y: (x.double().numpy(), y),
        lambda x, y: (list(zip(x.double().numpy(), y.tolist(), strict=True)),),
        lambda x, y: (x.double(), y),
        lambda x, y: (x, y, [0] * len(x)),
    ],
    ids=["array", "rows of arrays", "double", "list of tasks"],
)
def test_images_and_tasks_of_other_types_are_measured_alike(given):
    ((x, y),), found = tasks(1), []
    for images in ((x, y), given(x, y)):
        own = WeightPenalty(1.0, fisher="empirical", samples=7, basis="diagonal")
        own.remember(network(), *images)
        found.append(own.importances[0]["1.weight"])
    assert found[0].any() and torch.equal(*found)


def test_a_network_of_double_precision_reads_images_of_double_precision():
    ((x, y),) = tasks(1)
    own = WeightPenalty(1.0, basis="diagonal")
    own.remember(network().double(), x.double(), y)
    assert own.importances[0]["1.weight"].dtype == torch.float64


def test_unknown_real_values_are_drawn():
    (x, _), (new, _) = tasks()
    own, model = WeightPenalty(1.0, basis="diagonal", likelihood="gaussian", **GATE), network(1)
    own.remember(model, x)
    own.gate(model, new)
    assert own.shared[0]["1.weight"] > 0


REFUSED = {
    "no images": ({}, lambda x, y: (x[:0],), "no images"),
    "other labels": ({}, lambda x, y: (x, y[1:]), "24 images and 23 labels"),
    "other tasks": ({}, lambda x, y: (x, y, y[:3]), "24 images and 3 tasks"),
    "no labels": ({"fisher": "empirical"}, lambda x, y: (x,), "give labels="),
    "wrong labels": ({"fisher": "empirical"}, lambda x, y: (x, y + 7), "7|range|classes"),
    "dicts": (
        {},
        lambda x, y: ([{"pixels": row, "labels": 1} for row in x],),
        r"a dict with the keys \['pixels', 'labels'\] for the images.*tuples",
    ),
    "dicts of images": ({}, lambda x, y: ([({"pixels": row}, 1) for row in x],), "'pixels'"),
    "iterator": ({}, lambda x, y: (iter(x),), "a map-style data set"),
    "set": ({}, lambda x, y: ({1, 2},), "a map-style data set"),
    "other outputs": ({"output": "logits"}, lambda x, y: (x,), "output='logits'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_cannot_be_measured_are_refused(name):
    arguments, given, told = REFUSED[name]
    ((x, y),) = tasks(1)
    own = WeightPenalty(1.0, **arguments)
    with pytest.raises((ValueError, IndexError, TypeError), match=told):
        own.remember(network(), *given(x, y))
    assert own.importances == {}


@pytest.mark.parametrize("fisher", ["logits", "sampled", "empirical"])
def test_a_network_that_makes_other_rows_of_its_images_is_refused(fisher):
    pieces = Of(lambda m, x: m.layer(x.reshape(-1, 8)), layer=nn.Linear(8, 4))
    own = WeightPenalty(1.0, fisher=fisher)
    with pytest.raises(ValueError, match=r"shape \(4, 4\) for 2 images: their first"):
        own.remember(pieces, torch.randn(24, 16), torch.arange(24) % 4)
    assert own.importances == {}


@pytest.mark.parametrize("penalty", ["proximal", "loss"])
def test_an_optimiser_that_the_form_cannot_go_with_is_refused(penalty):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, maximize=True)
    if penalty == "proximal":
        del optimizer.param_groups[0]["lr"]
    other = {"proximal": "loss", "loss": "proximal"}[penalty]
    with pytest.raises(ValueError, match=f"give WeightPenalty penalty='{other}'"):
        WeightPenalty(1.0, penalty=penalty, basis="diagonal").step(model, optimizer)


# ------------------------------------------------------------------ state and wrappers


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("inside", [False, True], ids=["between tasks", "within a task"])
def test_a_run_goes_on_from_a_file_as_if_it_had_not_stopped(name, inside, tmp_path):
    stream, found = tasks(3), []
    for stops in (False, True):
        own, model = WeightPenalty(2.0, **ARGUMENTS[name]), network()
        optimizer = optimizer_of(model)
        for number, (images, labels) in enumerate(stream):
            if own.settings.gates:
                own.gate(model, images, labels)
            for epoch in range(2):
                learn(model, optimizer, own, images, labels, epochs=1)
                if stops and inside and (number, epoch) == (1, 0):
                    own = reloaded(own, tmp_path, ARGUMENTS[name])
            own.remember(model, images, labels)
            if stops and not inside:
                own = reloaded(own, tmp_path, ARGUMENTS[name])
        found.append(model)
    assert same(*found)


def reloaded(penalty, folder, arguments):
    torch.save(penalty.state_dict(), folder / "penalty.pt")
    other = WeightPenalty(2.0, **arguments)
    other.load_state_dict(torch.load(folder / "penalty.pt"))
    return other


def test_a_state_is_a_copy_and_of_one_basis():
    ((x, _),) = tasks(1)
    own, other = WeightPenalty(1.0, basis="diagonal"), WeightPenalty(1.0, basis="diagonal")
    own.remember(network(), x)
    other.load_state_dict(own.state_dict())
    own.importances[0]["1.weight"].zero_()
    assert other.importances[0]["1.weight"].any()
    with pytest.raises(ValueError, match="basis='diagonal', and this object has basis='kronecker'"):
        WeightPenalty(1.0, basis="kronecker").load_state_dict(own.state_dict())


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"mode": "online", "decay_factor": 0.5}, "mode='separate'.*has mode='online'"),
        ({"normalize": False}, "normalize=True.*has normalize=False"),
        ({"fisher": "empirical"}, "fisher='sampled'.*has fisher='empirical'"),
        ({"likelihood": "gaussian"}, "likelihood='categorical'.*has likelihood='gaussian'"),
    ],
)
def test_a_state_whose_importances_mean_another_thing_is_refused(other, told):
    ((x, _),) = tasks(1)
    own = WeightPenalty(1.0, basis="diagonal")
    own.remember(network(), x)
    with pytest.raises(ValueError, match=told):
        WeightPenalty(1.0, basis="diagonal", **other).load_state_dict(own.state_dict())
    WeightPenalty(3.0, basis="diagonal", samples=9, seed=4).load_state_dict(own.state_dict())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_network_that_is_wrapped_is_held_as_without(wrap):
    stream = tasks(2)
    found = [
        run(WeightPenalty(2.0, basis="kronecker"), stream, model=model)
        for model in (network(), wrap(network()))
    ]
    for mine, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_it_was_by_a_measurement():
    ((x, y),) = tasks(1)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), *network()).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    own = WeightPenalty(1.0, basis="diagonal")
    own.remember(model, x, y)
    own.gate(model, x, y)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert model.training and torch.equal(torch.get_rng_state(), random)


def test_infinite_strength_keeps_what_matters():
    stream = tasks(2)
    own = WeightPenalty(math.inf, basis="diagonal", **OPEN)
    model = run(own, stream)
    first = own.saved_params[0]
    for name, p in model.named_parameters():
        held = own.importances[0][name] > 0
        assert torch.equal(p[held], first[name][held])
