"""What old experiences leave to hold, however many there were."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from naive_bases import drawn_layer, drawn_values, drawn_weights, quadratic
from torch import Tensor

from avalanche_cetl import CICNN
from avalanche_cetl.allocation.directions import ROOM, DirectionSum
from avalanche_cetl.allocation.measure import gate
from avalanche_cetl.allocation.memory import Bases, DiagonalMemory, KroneckerMemory
from avalanche_cetl.allocation.proximal import Pull
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.information.generalized import (
    dwa_penalty,
    mean_importance,
    normalize_importance,
)
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis

SHAPES = {"w": torch.Size([4, 5]), "b": torch.Size([4]), "norm": torch.Size([3])}
OPEN = {"threshold": 0.0, "probability": 1.0}
GATED = {"threshold": 0.5, "probability": 0.9}
MODES = [None, 0.5]


def settings(kind, gate=OPEN, **arguments):
    return GFISettings(basis=kind, **gate, **arguments)


def measured(kind, seed, shapes=SHAPES, rank=99):
    """Importance of an experience, and its basis."""
    if kind == "diagonal":
        return {name: drawn_values(seed + 9, shape) for name, shape in shapes.items()}, None
    layer = drawn_layer(seed, shapes["w"], rank)
    own = {"w": drawn_values(seed, layer.shape), "norm": drawn_values(seed + 9, shapes["norm"])}
    return own, KroneckerBasis({"w": layer})


def memory_of(kind, decay=None, gate=OPEN, keep=True, **arguments):
    make = KroneckerMemory if kind == "kronecker" else DiagonalMemory
    return make(settings(kind, gate, **arguments), decay, keep)


def live(memory, experiences, relative=None, shapes=lambda now: SHAPES, heads=lambda now: ()):
    """Let a memory go through some experiences, and begin the next one.

    :return: per experience, importance, basis and weights.
    """
    kind = "kronecker" if isinstance(memory, KroneckerMemory) else "diagonal"
    found = []
    for now in range(experiences + 1):
        params = drawn_weights(now, shapes(now))
        memory.grow(params)
        rf = {} if relative is None or not now else relative(memory, now)
        memory.hold(now, params, rf, torch.Generator().manual_seed(now))
        if now < experiences:
            fisher, basis = measured(kind, now, shapes(now))
            memory.add(now, fisher, basis, params, heads(now))
            found.append((fisher, basis, params))
    return found


def test_a_pull_that_goes_on_is_the_one_that_is_made_anew_bit_for_bit():
    memory = memory_of("diagonal")
    experiences = live(memory, 6)
    anew = Pull()
    for fisher, _, params in experiences:
        anew.add(normalize_importance(fisher), params)
    assert memory.pull.importance.keys() == anew.importance.keys() == SHAPES.keys()
    for name in SHAPES:
        assert torch.equal(memory.pull.importance[name], anew.importance[name])
        assert torch.equal(memory.pull.anchors[name], anew.anchors[name])
    assert memory.pull.constant == anew.constant > 0


def grows(now):
    return {"w": torch.Size([4 + now, 5 + now // 2]), "b": torch.Size([4 + now])}


def placed(values, shapes):
    """Values in the old part of parameters that have grown, 0 in the new one."""
    found = {name: torch.zeros(shapes[name], dtype=torch.float64) for name in values}
    for name, value in values.items():
        found[name][tuple(slice(0, size) for size in value.shape)] = value
    return found


@pytest.mark.parametrize("shapes", [lambda now: SHAPES, grows], ids=["fixed", "growing"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_value_of_the_pull_is_that_of_all_experiences_penalties(shapes, normalize):
    memory = memory_of("diagonal", normalize=normalize)
    experiences = live(memory, 5, shapes=shapes)
    params = drawn_weights(99, shapes(5))
    params = {name: value.requires_grad_() for name, value in params.items()}
    wanted = torch.zeros((), dtype=torch.float64)
    for fisher, _, anchors in experiences:
        own = normalize_importance(fisher) if normalize else fisher
        grown = placed(own, shapes(5)), placed(anchors, shapes(5))
        wanted = wanted + dwa_penalty(params, grown[1], grown[0], 0.7)
    found = memory.pull.penalty(params, 0.7)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for got, want in zip(
        torch.autograd.grad(found, params.values()),
        torch.autograd.grad(wanted, params.values()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def relative_of(memory, now):
    """Relative Fisher information of everything that is held, by heads."""
    if isinstance(memory, KroneckerMemory):
        shapes = {name: value.shape for name, value in memory.pull.importance.items()}
    else:
        shapes = SHAPES
    return {
        heads: {name: drawn_values(now + 30, shape) for name, shape in shapes.items()}
        for heads in memory.heads(now)
    }


@pytest.mark.parametrize("decay", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_importance_as_it_is_held_is_what_the_gate_gave_bit_for_bit(normalize, decay):
    memory = memory_of("diagonal", decay, GATED, normalize=normalize)
    live(memory, 4, relative_of)
    generator, pull = torch.Generator().manual_seed(4), Pull()
    relative = relative_of(memory, 4)[()]
    old = [0, 1, 2, 3] if decay is None else [3]
    assert list(memory.gated) == list(memory.shared) == old
    for experience in old:
        wanted = gate(memory.importances[experience], relative, memory.settings, generator)
        found = memory.gated[experience]
        assert found.keys() == wanted.values.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.values.items())
        assert memory.shared[experience] == wanted.shared
        pull.add(wanted.values, memory.saved_params[experience])
    assert all(torch.equal(memory.pull.importance[name], v) for name, v in pull.importance.items())
    assert any(
        (weights["w"] == 0).any() and weights["w"].any() for weights in memory.gated.values()
    )


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_without_a_gate_nothing_is_drawn_and_all_is_held(kind):
    memory = memory_of(kind)
    experiences = live(memory, 3)
    assert memory.shared == {} and set(memory.gated) == ({0, 1, 2} if kind == "diagonal" else {2})
    if kind == "diagonal":
        for experience, (fisher, _, _) in enumerate(experiences):
            for name, value in normalize_importance(fisher).items():
                assert torch.equal(memory.gated[experience][name], value)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
@pytest.mark.parametrize("decay", MODES)
def test_between_experiences_nothing_is_held(kind, decay):
    memory = memory_of(kind, decay)
    live(memory, 2)
    assert memory.gated
    fisher, basis = measured(kind, 2)
    memory.add(2, fisher, basis, drawn_weights(2, SHAPES), ())
    assert memory.gated == {}


# ------------------------------------------------------------------ the sum of all directions


@pytest.mark.parametrize("decay", MODES)
def test_the_sum_of_directions_is_held_around_the_newest_weights(decay):
    memory = memory_of("kronecker", decay)
    experiences = live(memory, 4)
    wanted = DirectionSum(memory.settings.rank)
    for fisher, basis, _ in experiences:
        own = normalize_importance(fisher, basis)
        wanted.add(own, basis, SHAPES, 1.0 if decay is None else decay)
    newest = experiences[-1][2]
    params = drawn_weights(99, SHAPES)
    away = {name: params[name] - newest[name] for name in params}
    found = memory.pull.penalty(params, 0.7)
    value = 0.35 * quadratic(wanted.importance, wanted.basis, away)
    torch.testing.assert_close(found, value, rtol=1e-12, atol=0)
    assert memory.names(4) == SHAPES.keys()


def test_a_gate_of_directions_keeps_the_mean_of_what_it_leaves():
    memory = memory_of("kronecker", None, GATED)
    live(memory, 3)
    whole, basis = memory.gated[2], memory.basis
    relative = {name: drawn_values(9, value.shape) for name, value in whole.items()}
    memory.hold(3, drawn_weights(3, SHAPES), {(): relative}, torch.Generator().manual_seed(5))
    wanted = gate(whole, relative, memory.settings, torch.Generator().manual_seed(5), basis)
    mean = mean_importance(whole, basis)
    assert memory.shared == {2: wanted.shared} and memory.gated.keys() == {2}
    for name, value in memory.gated[2].items():
        torch.testing.assert_close(value, wanted.values[name] * mean, rtol=1e-12, atol=0)
        assert 0 < float((value == 0).double().mean()) < 1
    assert mean_importance(memory.gated[2], basis) == pytest.approx(mean, rel=1e-12)


def test_directions_that_were_not_compared_are_held_whole():
    memory = memory_of("kronecker", None, {"threshold": 0.5, "probability": 1.0}, normalize=False)
    live(memory, 2)
    whole = memory.gated[1]
    nothing = {"w": torch.zeros_like(whole["w"])}
    memory.hold(2, drawn_weights(2, SHAPES), {(): nothing}, torch.Generator())
    assert torch.equal(memory.gated[1]["norm"], whole["norm"])
    assert not memory.gated[1]["w"].any() and memory.shared == {1: {"w": 0.0}}


@pytest.mark.parametrize("decay", MODES)
def test_one_gate_of_all_experiences_asks_for_the_heads_of_all(decay):
    memory = memory_of("kronecker", decay, keep=decay is None)
    assert memory.heads(0) == []
    live(memory, 3, heads=lambda now: (now, 7))
    assert memory.heads(3) == [(0, 1, 2, 7)]


def test_one_gate_of_each_experience_asks_for_the_heads_of_each():
    memory = memory_of("diagonal")
    live(memory, 3, heads=lambda now: (now % 2,))
    assert memory.heads(3) == [(0,), (1,)]


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_what_is_frozen_for_an_experience_fades_and_keeps_its_anchor(kind):
    memory = memory_of(kind, 0.5)
    live(memory, 2)
    before = memory.gated[1]["norm"]
    fisher, basis = measured(kind, 2)
    del fisher["norm"]
    later = drawn_weights(50, {name: SHAPES[name] for name in ("w", "b")})
    memory.add(2, fisher, basis, later, ())
    anchor = memory.saved_params[1]["norm"]
    memory.hold(3, drawn_weights(3, SHAPES), {}, torch.Generator())
    assert torch.equal(memory.pull.anchors["norm"], anchor)
    if kind == "kronecker":
        torch.testing.assert_close(memory.gated[2]["norm"], 0.5 * before)
    assert memory.gated[2]["norm"].any()


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
@pytest.mark.parametrize("keep", [True, False])
def test_past_experiences_are_kept_where_they_are_asked_for(kind, keep):
    memory = memory_of(kind, 0.5, keep=keep)
    live(memory, 3)
    left = {0, 1, 2} if keep else {2}
    assert memory.importances.keys() == memory.saved_params.keys() == left
    assert memory.bases.keys() == (left if kind == "kronecker" else set())


def test_an_experience_is_kept_as_it_was_measured():
    memory = memory_of("kronecker")
    experiences = live(memory, 3)
    for experience, (fisher, basis, params) in enumerate(experiences):
        assert memory.importances[experience].keys() == fisher.keys()
        for name, value in fisher.items():
            assert torch.equal(memory.importances[experience][name], value)
        assert all(torch.equal(memory.saved_params[experience][n], p) for n, p in params.items())
        assert torch.equal(memory.bases[experience]["w"].right, basis["w"].right)


def test_bases_come_back_from_their_state():
    bases = Bases()
    for experience in (0, 3):
        _, bases[experience] = measured("kronecker", experience)
    again = Bases()
    again[5] = KroneckerBasis({})
    again.load_state_dict(bases.state_dict())
    assert list(again) == [0, 3]
    for experience, basis in bases.items():
        assert again[experience].folded == basis.folded == {"b"}
        for name, layer in basis.items():
            other = again[experience][name]
            assert (other.weight, other.bias, other.shape) == (name, "b", layer.shape)
            assert torch.equal(other.left, layer.left) and torch.equal(other.right, layer.right)


# ------------------------------------------------------------------ memory


def tensors(one, seen):
    """All tensors within an object of ours, or plain data."""
    if id(one) in seen:
        return
    seen.add(id(one))
    if isinstance(one, Tensor):
        yield one
        return
    parts = list(one.values()) if isinstance(one, Mapping) else []
    parts += list(one) if isinstance(one, list | tuple) else []
    if type(one).__module__.startswith("avalanche_cetl"):
        parts += list(vars(one).values())
    for part in parts:
        yield from tensors(part, seen)


def size(memory):
    """Bytes of all distinct storages of a memory."""
    storages = [tensor.untyped_storage() for tensor in tensors(memory, set())]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def layer_of(name, weight, biases, rank=64):
    """A basis of a layer, of as many directions as the rank allows."""
    bias = name.removesuffix("weight") + "bias"
    bias = bias if bias in biases else None
    inputs = weight[0].numel() + (bias is not None)
    sides = (torch.linalg.qr(torch.randn(n, min(n, rank))).Q for n in (len(weight), inputs))
    return LayerBasis(name, bias, *sides)


def sizes(kind, decay, gate, experiences=2 + ROOM):
    """Bytes of a memory at the beginning of every experience, and of the network."""
    torch.manual_seed(0)
    params = dict(CICNN(10, (3, 32, 32), width=0.25).named_parameters())
    memory, found = memory_of(kind, decay, gate, keep=decay is None), []
    for now in range(experiences):
        memory.grow(params)
        held = memory.basis or {}
        shapes = {n: held[n].shape if n in held else p.shape for n, p in params.items()}
        relative = {
            heads: {n: torch.rand(s) for n, s in shapes.items()} for heads in memory.heads(now)
        }
        memory.hold(now, params, relative if gate is GATED else {}, torch.Generator())
        found.append(size(memory))
        layers = {n: layer_of(n, p, params) for n, p in params.items() if p.dim() > 1}
        basis = KroneckerBasis(layers if kind == "kronecker" else {})
        shapes = {n: basis[n].shape if n in basis else p.shape for n, p in params.items()}
        fisher = {n: torch.rand(s) for n, s in shapes.items() if n not in basis.folded}
        memory.add(now, fisher, basis if kind == "kronecker" else None, params, ())
    return found, sum(p.nbytes for p in params.values())


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_one_more_old_experience_takes_no_more_memory_than_two_networks(kind):
    found, network = sizes(kind, None, OPEN)
    # The sum of all directions is full then.
    added = [after - before for before, after in pairwise(found[ROOM:])]
    assert added and max(added) <= 2 * network
    gated, _ = sizes(kind, None, GATED)
    assert gated[-1] - gated[-2] <= (2 + 1 / 32) * network + 8 * 16


@pytest.mark.parametrize("gate", [OPEN, GATED], ids=["open", "gated"])
@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_online_all_that_is_kept_takes_no_more_memory_than_six_networks(kind, gate):
    found, network = sizes(kind, 0.5, gate)
    assert found[0] == 0 < network and max(found) <= 6 * network
    assert found[-1] == found[-2]
