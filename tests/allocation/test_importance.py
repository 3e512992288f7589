"""GFI1 to GFI3 on coupled networks, weight by weight and in a basis."""

from dataclasses import replace

import pytest
import torch
from counting import Counting, images
from coupled_runs import SHAPE, coupled, strategy
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from avalanche_cetl import CoupledModel, GFISettings, transfer_benchmark
from avalanche_cetl.allocation import PAIRS, Importance, importance, measure_importance
from avalanche_cetl.allocation.importance import coupled_task
from avalanche_cetl.allocation.measure import Measurement
from avalanche_cetl.checkpoints.codec import equal, is_plain
from avalanche_cetl.information import fisher_and_relative, kronecker_basis
from avalanche_cetl.information.generalized import dwa_penalty, mean_importance
from avalanche_cetl.information.outputs import sample_output_vectors
from avalanche_cetl.models.coupled import TargetTasks
from avalanche_cetl.plugins import Batch

KRONECKER = GFISettings(basis="kronecker", rank=3, fisher="empirical", normalize=False)


def sample(count=5):
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    return Batch([x, torch.arange(count) % 3, torch.zeros(count, dtype=torch.long)])


def measured(model, name, settings=KRONECKER, kind="fisher"):
    generator = torch.Generator().manual_seed(0)
    return measure_importance(model, PAIRS[name], sample(), settings, kind, generator)


def reconstruction(model, name, x):
    """The reconstruction that an importance keeps, and what it is compared with."""
    source = model.reconstruct_source(x)
    return (source, x) if name == "GFI1" else (model.reconstruct_target(x), source.detach())


def part_of(model, name):
    return model.target_parameters() if name == "GFI3" else model.decoder_parameters()


def gradients(model, name):
    """Per-sample gradients of the task to keep, one sample after the other."""
    params = part_of(model, name)
    found = {n: [] for n in params}
    model.eval()
    for x in sample().images.split(1):
        loss = 0.5 * F.mse_loss(*reconstruction(model, name, x), reduction="sum")
        own = torch.autograd.grad(loss, params.values(), allow_unused=True)
        for n, g in zip(params, own, strict=True):
            found[n].append(torch.zeros_like(params[n]) if g is None else g)
    return found


def by_direction(layer, weight, bias):
    """``u_i^T W v_j`` of a layer, direction by direction."""
    matrix = weight.flatten(1)
    if layer.bias is not None:
        matrix = torch.cat([matrix, bias.unsqueeze(1)], 1)
    rows = [
        torch.stack([u @ matrix @ v for v in layer.right.unbind(1)]) for u in layer.left.unbind(1)
    ]
    return torch.stack(rows)


def directions(values, basis):
    """All entries of an importance: of layers with a basis by direction."""
    others = {n: v for n, v in values.items() if n not in basis and n not in basis.folded}
    layers = {
        n: by_direction(layer, values[n], values.get(layer.bias)) for n, layer in basis.items()
    }
    return others | layers


@pytest.mark.parametrize("name", PAIRS)
def test_an_importance_in_a_basis_is_the_mean_square_of_rotated_gradients(name):
    model = coupled().double()
    found = measured(model, name)
    assert found.basis and found.basis.folded
    samples = gradients(model, name)
    rotated = [
        directions({n: values[i] for n, values in samples.items()}, found.basis) for i in range(5)
    ]
    assert found.values.keys() == rotated[0].keys() and found.shared == {}
    for one, value in found.values.items():
        wanted = sum(of[one].square() for of in rotated) / 5
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-14)
    assert sum(found.sizes.values()) == sum(p.numel() for p in part_of(model, name).values())


@pytest.mark.parametrize("name", PAIRS)
def test_a_penalty_in_a_basis_is_eq_11_direction_by_direction(name):
    model = coupled().double()
    found = measured(model, name)
    params = dict(model.named_parameters())
    assert found.penalty(model, 0.3) == 0
    assert found.anchors.keys() == part_of(model, name).keys()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in params.values():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    moved = {n: params[n].detach() - anchor for n, anchor in found.anchors.items()}
    away = directions(moved, found.basis)
    total = sum((found.values[n] * value.square()).sum() for n, value in away.items())
    penalty = found.penalty(model, 0.3)
    torch.testing.assert_close(penalty.detach(), 0.15 * total, rtol=1e-10, atol=0)
    by_hand = dwa_penalty(params, found.anchors, found.values, 0.3, basis=found.basis)
    assert torch.equal(penalty, by_hand) and penalty > 0


def tasks_of(model, name):
    """Both tasks of a pair, and the network that computes them."""
    outputs = (PAIRS[name].keep, PAIRS[name].partner)
    x, labels, tasks = sample().tensors
    with torch.no_grad():
        source = model.eval().reconstruct_source(x)
    goals = {"source": x, "target": source, "logits": labels}
    made = [coupled_task(one, (), goals[one], tasks) for one in outputs]
    return TargetTasks(model, outputs), (model.source(x), x), made


@pytest.mark.parametrize("name", PAIRS)
def test_the_gate_in_a_basis_keeps_the_shared_directions_of_the_task_to_keep(name):
    model = coupled().double()
    settings = replace(KRONECKER, threshold=0.6)
    found = measured(model, name, settings, "gfi")
    network, inputs, (keep, partner) = tasks_of(model, name)
    params = list(part_of(model, name))
    keeper = TargetTasks(model, (PAIRS[name].keep,))
    basis = kronecker_basis(keeper, inputs, keep.loss, params, targets=keep.targets, rank=3)
    assert basis.keys() == found.basis.keys()
    for one, layer in basis.items():
        assert torch.equal(layer.left, found.basis[one].left)
        assert torch.equal(layer.right, found.basis[one].right)
    fisher, relative = fisher_and_relative(
        network, inputs, (keep.loss, partner.loss), params,
        targets=(keep.targets, partner.targets), basis=basis,
    )  # fmt: skip
    shares = set()
    for one, value in found.values.items():
        shared = relative[one] >= 0.6
        torch.testing.assert_close(value, torch.where(shared, fisher[one], 0))
        assert found.shared[one] == pytest.approx(float(shared.double().mean()))
        shares.add(found.shared[one])
    assert min(shares) < max(shares)


@pytest.mark.parametrize("name", PAIRS)
def test_the_importance_of_the_outputs_is_that_of_the_pixels_by_one_vector_an_image(name):
    model = coupled().double()
    settings = GFISettings(fisher="logits", normalize=False)
    found = measured(model, name, settings)
    generator = torch.Generator().manual_seed(0)
    sample_output_vectors(model.eval()(sample().images), "categorical", generator)
    vectors = sample_output_vectors(sample().images, "gaussian", generator)
    torch.testing.assert_close(vectors.flatten(1).square().sum(1), torch.ones(5).double())
    params = part_of(model, name)
    wanted = {n: torch.zeros_like(p) for n, p in params.items()}
    for x, u in zip(sample().images.split(1), vectors, strict=True):
        value = (reconstruction(model, name, x)[0] * u).sum()
        own = torch.autograd.grad(value, params.values(), allow_unused=True)
        for n, g in zip(params, own, strict=True):
            wanted[n] += 0 if g is None else g.square() / 5
    for n, value in wanted.items():
        torch.testing.assert_close(found.values[n], value, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_the_outputs_of_both_tasks_gate_one_another(basis):
    model = coupled().double()
    settings = GFISettings(fisher="logits", basis=basis, threshold=0.5, probability=1.0)
    shares = {name: measured(model, name, settings, "gfi").shared for name in PAIRS}
    assert all(0 < sum(one.values()) < len(one) for one in shares.values())


def test_without_a_gate_no_relative_information_is_measured_in_the_kronecker_basis(monkeypatch):
    model = coupled().double()
    settings = replace(KRONECKER, normalize=True)
    plain = measured(model, "GFI2", settings)
    assert measured(model, "GFI2", replace(settings, basis="diagonal"), "gfi").shared
    monkeypatch.delattr(Measurement, "relative")
    found = measured(model, "GFI2", settings, "gfi")
    assert found.shared == {} and equal(found.state_dict(), plain.state_dict())
    assert mean_importance(found.values, found.basis) == pytest.approx(1)


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_an_importance_comes_back_from_its_state(basis):
    model = coupled().double()
    found = measured(model, "GFI3", GFISettings(basis=basis, threshold=0.5, samples=5), "gfi")
    state = found.state_dict()
    again = Importance.from_state_dict(state)
    assert is_plain(state) and equal(again.state_dict(), state)
    with torch.no_grad():
        for p in model.target.parameters():
            p += 0.1
    assert torch.equal(again.penalty(model, 1.0), found.penalty(model, 1.0))
    moved = found.to(torch.device("meta"))
    tensors = [*moved.values.values(), *moved.anchors.values()]
    tensors += [side for one in (moved.basis or {}).values() for side in (one.left, one.right)]
    assert all(tensor.is_meta for tensor in tensors)


def test_states_of_earlier_versions_are_weight_by_weight():
    found = measured(coupled().double(), "GFI3", replace(KRONECKER, basis="diagonal"))
    state = found.state_dict()
    assert state.pop("basis") is None
    assert equal(Importance.from_state_dict(state).state_dict(), found.state_dict())


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_weights_that_a_network_has_grown_by_are_free(basis):
    model = coupled().double()
    found = measured(model, "GFI3", replace(KRONECKER, basis=basis))
    with torch.no_grad():
        for p in model.target.parameters():
            p += 0.1
    before = found.penalty(model, 1.0).detach()
    layer, head = model.target.module.hidden[1], model.target.module.head
    for one, names in ((layer, ("weight", "bias")), (head, ("weight", "bias"))):
        for name in names:
            old = getattr(one, name).detach()
            new = torch.ones(old.shape[0] + 2, *(size + 1 for size in old.shape[1:])).double()
            new[tuple(slice(0, size) for size in old.shape)] = old
            setattr(one, name, nn.Parameter(new))
    penalty = found.penalty(model, 1.0)
    torch.testing.assert_close(penalty.detach(), before, rtol=1e-12, atol=0)
    assert found.misfits(dict(model.named_parameters())) == []
    (pull,) = torch.autograd.grad(penalty, [layer.weight])
    assert pull[:-2, :-1].any() and not pull[-2:].any() and not pull[:, -1].any()


def test_importances_of_weights_that_have_all_grown_are_brought_to_their_shapes():
    model = coupled().double()
    found = measured(model, "GFI3", replace(KRONECKER, basis="diagonal"))
    name = "target.module.head.bias"
    one = replace(found, values={name: found.values[name]}, anchors={name: found.anchors[name]})
    one.grow({name: torch.zeros(len(found.anchors[name]) + 2).double()})
    assert (
        torch.equal(one.values[name][:-2], found.values[name]) and not one.values[name][-2:].any()
    )
    assert one.anchors[name].shape == one.values[name].shape


def cut(importance, name):
    """An importance whose basis of one layer lacks an input."""
    layer = importance.basis[name]
    layers = dict(importance.basis) | {name: replace(layer, right=layer.right[1:])}
    return replace(importance, basis=type(importance.basis)(layers))


def test_importances_of_other_networks_do_not_fit():
    model = coupled().double()
    params, found = dict(model.named_parameters()), measured(model, "GFI3")
    name = "target.module.hidden.1.weight"
    assert found.misfits(params) == []
    assert set(found.misfits({})) == found.anchors.keys()
    assert found.misfits(params | {name: params[name][:, 1:]}) == [name, name]
    assert cut(found, name).misfits(params) == [name]
    narrow = replace(found, values=found.values | {name: found.values[name][1:]})
    assert narrow.misfits(params) == [name]
    without = replace(found, values={n: v for n, v in found.values.items() if n != name})
    assert without.misfits(params) == [name]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_target_of_which_a_part_is_wrapped_has_the_same_importance_and_penalty(wrap):
    model, found = coupled().double(), []
    for settings in (KRONECKER, GFISettings()):
        found.append(measured(model, "GFI3", settings))
    target = model.target.module
    target.hidden = wrap(target.hidden)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    penalties = [one.penalty(model, 1.0) for one in found]
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1
    for settings, wanted in zip((KRONECKER, GFISettings()), found, strict=True):
        again = measured(model, "GFI3", settings)
        assert again.values.keys() == wanted.values.keys()
        for name, value in wanted.values.items():
            torch.testing.assert_close(again.values[name], value)
    assert all(float(penalty) > 0 for penalty in penalties)


def test_a_penalty_does_not_walk_through_s():
    model = coupled().double()
    found = measured(model, "GFI1")
    model.source.named_modules = None
    assert found.penalty(model, 1.0) == 0


def test_a_parameter_that_lost_its_name_is_not_let_go_without_a_word():
    model = coupled().double()
    found = measured(model, "GFI3")
    prune.random_unstructured(model.target.module.hidden[1], "weight", 0.5)
    with pytest.raises(ValueError, match=r"CETLStrategy holds 'target\.module\.hidden\.1\.weight'"):
        found.penalty(model, 1.0)


@pytest.mark.parametrize("fisher", ["sampled", "empirical", "logits"])
def test_what_the_networks_give_is_read_in_parts_and_is_the_same(monkeypatch, fisher):
    model, rows = coupled().double(), []

    def watch(name):
        plain = getattr(CoupledModel, name)

        def watched(self, x=None, features=None):
            rows.append((name, len(features if x is None else x)))
            return plain(self, x) if features is None else plain(self, features=features)

        monkeypatch.setattr(CoupledModel, name, watched)

    for name in ("source_features", "decode_target", "reconstruct_source"):
        watch(name)
    whole = measured(model, "GFI1", replace(KRONECKER, fisher=fisher))
    assert {count for _, count in rows} == {5} and len(rows) == 3
    rows.clear()
    monkeypatch.setattr(importance, "DRAWN_AT_ONCE", 2)
    parts = measured(model, "GFI1", replace(KRONECKER, fisher=fisher))
    assert [count for _, count in rows] == [2, 2, 1] * 3
    assert len({name for name, _ in rows}) == 3
    torch.testing.assert_close(parts.values, whole.values)


def test_coupling_leaves_no_trace_in_the_target():
    model = Counting()
    coupled(target=model)
    assert model.passes == 0 and model.largest == 0 and not model.average.any()


def test_measuring_leaves_no_trace_in_cetls_target():
    passes = []
    for variant in ("e", "gfi"):
        torch.manual_seed(0)
        model = Counting()
        run = strategy(coupled(target=model), lr=1e-3, variant=variant, train_mb_size=6)
        run.train(transfer_benchmark(images(), images()).train_stream)
        passes.append(model.passes)
    assert passes[0] == passes[1]
