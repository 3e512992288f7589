"""What old experiences leave to hold, however many there were."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from importance_stores import GATED, MODES, OPEN, SHAPES, differing, measured, store_of
from naive_bases import drawn_values, drawn_weights, quadratic
from torch import Tensor

from avalanche_cetl import CICNN
from avalanche_cetl.allocation.kronecker_store import KroneckerStore
from avalanche_cetl.allocation.measure import gate
from avalanche_cetl.allocation.merged_basis import ROOM, MergedBasis
from avalanche_cetl.allocation.proximal import QuadraticPenalty
from avalanche_cetl.information.generalized import (
    dwa_penalty,
    mean_importance,
    normalize_importance,
)
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis


def live(store, experiences, relative=None, shapes=lambda now: SHAPES, heads=lambda now: ()):
    """Let a store go through some experiences, and begin the next one.

    :return: per experience, importance, basis and weights.
    """
    kind = "kronecker" if isinstance(store, KroneckerStore) else "diagonal"
    found = []
    for now in range(experiences + 1):
        params = drawn_weights(now, shapes(now))
        store.grow(params)
        rf = {} if relative is None or not now else relative(store, now)
        store.hold(params, rf, torch.Generator().manual_seed(now))
        if now < experiences:
            fisher, basis = measured(kind, now, shapes(now))
            store.add(now, fisher, basis, params, heads(now))
            found.append((fisher, basis, params))
    return found


def test_a_sum_that_goes_on_is_the_one_that_is_made_totalbit_for_bit():
    store = store_of("diagonal")
    experiences = live(store, 6)
    anew = QuadraticPenalty()
    for fisher, _, params in experiences:
        anew.add(normalize_importance(fisher), params)
    assert store.quadratic.importance.keys() == anew.importance.keys() == SHAPES.keys()
    for name in SHAPES:
        assert torch.equal(store.quadratic.importance[name], anew.importance[name])
        assert torch.equal(store.quadratic.anchors[name], anew.anchors[name])
    assert store.quadratic.constant == anew.constant > 0


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
def test_the_value_of_the_sum_is_that_of_all_experiences_penalties(shapes, normalize):
    store = store_of("diagonal", normalize=normalize)
    experiences = live(store, 5, shapes=shapes)
    params = drawn_weights(99, shapes(5))
    params = {name: value.requires_grad_() for name, value in params.items()}
    wanted = torch.zeros((), dtype=torch.float64)
    for fisher, _, anchors in experiences:
        own = normalize_importance(fisher) if normalize else fisher
        grown = placed(own, shapes(5)), placed(anchors, shapes(5))
        wanted = wanted + dwa_penalty(params, grown[1], grown[0], 0.7)
    found = store.quadratic.penalty(params, 0.7)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for got, want in zip(
        torch.autograd.grad(found, params.values()),
        torch.autograd.grad(wanted, params.values()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def relative_of(store, now):
    """Relative Fisher information of everything that is held, by heads."""
    if isinstance(store, KroneckerStore):
        shapes = {name: value.shape for name, value in store.quadratic.importance.items()}
    else:
        shapes = SHAPES
    return {
        heads: {name: drawn_values(now + 30, shape) for name, shape in shapes.items()}
        for heads in store.heads()
    }


@pytest.mark.parametrize("decay", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_importance_as_it_is_held_is_what_the_gate_gave_bit_for_bit(normalize, decay):
    store = store_of("diagonal", decay, GATED, normalize=normalize)
    live(store, 4, relative_of)
    generator, total = torch.Generator().manual_seed(4), QuadraticPenalty()
    relative = relative_of(store, 4)[()]
    old = [0, 1, 2, 3] if decay is None else [3]
    assert list(store.gated) == list(store.shared) == old
    for experience in old:
        held = store.importances[experience]
        wanted, shared = gate(held, relative, store.settings, generator)
        found = store.gated[experience]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
        assert store.shared[experience] == shared
        total.add(wanted, store.saved_params[experience])
    assert all(
        torch.equal(store.quadratic.importance[name], v) for name, v in total.importance.items()
    )
    assert any((weights["w"] == 0).any() and weights["w"].any() for weights in store.gated.values())


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_without_a_gate_nothing_is_drawn_and_all_is_held(kind):
    store = store_of(kind)
    experiences = live(store, 3)
    assert store.shared == {} and set(store.gated) == ({0, 1, 2} if kind == "diagonal" else {2})
    if kind == "diagonal":
        for experience, (fisher, _, _) in enumerate(experiences):
            for name, value in normalize_importance(fisher).items():
                assert torch.equal(store.gated[experience][name], value)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
@pytest.mark.parametrize("decay", MODES)
def test_between_experiences_nothing_is_held(kind, decay):
    store = store_of(kind, decay)
    live(store, 2)
    assert store.gated
    fisher, basis = measured(kind, 2)
    store.add(2, fisher, basis, drawn_weights(2, SHAPES), ())
    assert store.gated == {}


# ------------------------------------------------------------------ the sum of all directions


@pytest.mark.parametrize("decay", MODES)
def test_the_sum_of_directions_is_held_around_the_newest_weights(decay):
    store = store_of("kronecker", decay)
    experiences = live(store, 4)
    wanted = MergedBasis(store.settings.rank)
    for fisher, basis, _ in experiences:
        own = normalize_importance(fisher, basis)
        wanted.add(own, basis, SHAPES, 1.0 if decay is None else decay)
    newest = experiences[-1][2]
    params = drawn_weights(99, SHAPES)
    away = {name: params[name] - newest[name] for name in params}
    found = store.quadratic.penalty(params, 0.7)
    value = 0.35 * quadratic(wanted.importance, wanted.basis, away)
    torch.testing.assert_close(found, value, rtol=1e-12, atol=0)
    assert store.names == SHAPES.keys()


def test_a_gate_of_directions_keeps_the_mean_of_what_it_leaves():
    store = store_of("kronecker", None, GATED)
    live(store, 3)
    whole, basis = store.gated[2], store.basis
    relative = {name: drawn_values(9, value.shape) for name, value in whole.items()}
    store.hold(drawn_weights(3, SHAPES), {(): relative}, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    wanted, shared = gate(whole, relative, store.settings, generator, basis)
    mean = mean_importance(whole, basis)
    assert store.shared == {2: shared} and store.gated.keys() == {2}
    for name, value in store.gated[2].items():
        torch.testing.assert_close(value, wanted[name] * mean, rtol=1e-12, atol=0)
        assert 0 < float((value == 0).double().mean()) < 1
    assert mean_importance(store.gated[2], basis) == pytest.approx(mean, rel=1e-12)


def test_directions_that_were_not_compared_are_held_whole():
    store = store_of("kronecker", None, {"threshold": 0.5, "probability": 1.0}, normalize=False)
    live(store, 2)
    whole = store.gated[1]
    nothing = {"w": torch.zeros_like(whole["w"])}
    store.hold(drawn_weights(2, SHAPES), {(): nothing}, torch.Generator())
    assert torch.equal(store.gated[1]["norm"], whole["norm"])
    assert not store.gated[1]["w"].any() and store.shared == {1: {"w": 0.0}}


@pytest.mark.parametrize("decay", MODES)
def test_one_gate_of_all_experiences_asks_for_the_heads_of_all(decay):
    store = store_of("kronecker", decay, keep=decay is None)
    assert store.heads() == []
    live(store, 3, heads=lambda now: (now, 7))
    assert store.heads() == [(0, 1, 2, 7)]


def test_one_gate_of_each_experience_asks_for_the_heads_of_each():
    store = store_of("diagonal")
    live(store, 3, heads=lambda now: (now % 2,))
    assert store.heads() == [(0,), (1,)]


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_what_is_frozen_for_an_experience_fades_and_keeps_its_anchor(kind):
    store = store_of(kind, 0.5)
    live(store, 2)
    before = store.gated[1]["norm"]
    fisher, basis = measured(kind, 2)
    del fisher["norm"]
    later = drawn_weights(50, {name: SHAPES[name] for name in ("w", "b")})
    store.add(2, fisher, basis, later, ())
    anchor = store.saved_params[1]["norm"]
    store.hold(drawn_weights(3, SHAPES), {}, torch.Generator())
    assert torch.equal(store.quadratic.anchors["norm"], anchor)
    if kind == "kronecker":
        torch.testing.assert_close(store.gated[2]["norm"], 0.5 * before)
    assert store.gated[2]["norm"].any()


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
@pytest.mark.parametrize("keep", [True, False])
def test_past_experiences_are_kept_where_they_are_asked_for(kind, keep):
    store = store_of(kind, 0.5, keep=keep)
    live(store, 3)
    left = {0, 1, 2} if keep else {2}
    assert store.importances.keys() == store.saved_params.keys() == left
    assert store.bases.keys() == (left if kind == "kronecker" else set())


def test_an_experience_is_kept_as_it_was_measured():
    store = store_of("kronecker")
    experiences = live(store, 3)
    for experience, (fisher, basis, params) in enumerate(experiences):
        assert store.importances[experience].keys() == fisher.keys()
        for name, value in fisher.items():
            assert torch.equal(store.importances[experience][name], value)
        assert all(torch.equal(store.saved_params[experience][n], p) for n, p in params.items())
        assert torch.equal(store.bases[experience]["w"].right, basis["w"].right)


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
@pytest.mark.parametrize("decay", MODES)
@pytest.mark.parametrize("gate", [OPEN, GATED], ids=["open", "gated"])
def test_a_store_goes_on_from_its_state_as_the_other_does(kind, decay, gate):
    relative = relative_of if gate is GATED else None
    stores = [store_of(kind, decay, gate) for _ in range(2)]
    live(stores[0], 2, relative)
    stores[1].load_state_dict(stores[0].state_dict())
    assert stores[1].gated.keys() == stores[0].gated.keys() != set()
    fisher, basis = measured(kind, 2)
    for one in stores:
        one.add(2, fisher, basis, drawn_weights(2, SHAPES), ())
        rf = {} if relative is None else relative_of(one, 3)
        one.hold(drawn_weights(3, SHAPES), rf, torch.Generator().manual_seed(3))
    assert differing(*(one.state_dict() for one in stores)) == []
    assert stores[0].quadratic.importance["norm"].any()


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


def size(store):
    """Bytes of all distinct storages of a store."""
    storages = [tensor.untyped_storage() for tensor in tensors(store, set())]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def layer_of(name, weight, biases, rank=64):
    """A basis of a layer, of as many directions as the rank allows."""
    bias = name.removesuffix("weight") + "bias"
    bias = bias if bias in biases else None
    inputs = weight[0].numel() + (bias is not None)
    sides = (torch.linalg.qr(torch.randn(n, min(n, rank))).Q for n in (len(weight), inputs))
    return LayerBasis(name, bias, *sides)


def sizes(kind, decay, gate, experiences=2 + ROOM):
    """Bytes of a store at the beginning of every experience, and of the network."""
    torch.manual_seed(0)
    params = dict(CICNN(10, (3, 32, 32), width=0.25).named_parameters())
    store, found = store_of(kind, decay, gate, keep=decay is None), []
    for now in range(experiences):
        store.grow(params)
        held = store.basis or {}
        shapes = {n: held[n].shape if n in held else p.shape for n, p in params.items()}
        relative = {heads: {n: torch.rand(s) for n, s in shapes.items()} for heads in store.heads()}
        store.hold(params, relative if gate is GATED else {}, torch.Generator())
        found.append(size(store))
        layers = {n: layer_of(n, p, params) for n, p in params.items() if p.dim() > 1}
        basis = KroneckerBasis(layers if kind == "kronecker" else {})
        shapes = {n: basis[n].shape if n in basis else p.shape for n, p in params.items()}
        fisher = {n: torch.rand(s) for n, s in shapes.items() if n not in basis.folded}
        store.add(now, fisher, basis if kind == "kronecker" else None, params, ())
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
