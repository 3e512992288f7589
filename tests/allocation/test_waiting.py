"""Small tasks that wait for each other before a large sum takes them in."""

import pytest
import torch
from importance_stores import OPEN, SHAPES, differing, measured, store_of
from naive_bases import drawn_weights, quadratic
from torch import nn

from avalanche_cetl.allocation import WeightPenalty
from avalanche_cetl.allocation.merged_basis import MergedBasis
from avalanche_cetl.information.generalized import normalize_importance
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis

#: Directions that each task has on either side of its layer: the sum is large after the third.
RANKS = (2, 2, 2, 1)
#: Of what is drawn, with which no task has an importance of 0 alone.
SEED = 30


def lived(ranks=RANKS, rank=2, shapes=SHAPES, damping=0.0, **arguments):
    """A store after tasks of these ranks, what they were measured as, and the newest weights."""
    store, found = store_of("kronecker", rank=rank, **arguments), []
    store.damping = damping
    for now, one in enumerate(ranks):
        params = drawn_weights(now, shapes)
        fisher, basis = measured("kronecker", SEED + now, shapes, one)
        store.add(now, fisher, basis, params, ())
        store.hold(params, {}, torch.Generator().manual_seed(now))
        found.append((normalize_importance(fisher, basis), basis))
    return store, found, params


def summed(tasks, rank=2):
    total = MergedBasis(rank)
    for fisher, basis in tasks:
        total.add(fisher, basis, SHAPES)
    return total


def value(total, away):
    return quadratic(total.importance, total.basis, away)


def test_a_small_task_beside_a_large_sum_is_held_as_it_was_measured():
    store, tasks, newest = lived()
    now = drawn_weights(99, SHAPES)
    away = {name: now[name] - newest[name] for name in now}
    large, small = summed(tasks[:3]), summed(tasks[3:])
    assert large.directions > 4 and small.directions == 1
    wanted = 0.35 * (value(large, away) + value(small, away))
    torch.testing.assert_close(store.quadratic.penalty(now, 0.7), wanted, rtol=1e-12, atol=0)
    assert store.quadratic.names == store.names == SHAPES.keys()


def test_the_sum_takes_them_in_together_once_they_have_the_directions_of_one_task():
    store, tasks, _ = lived((*RANKS, 1))
    assert store.quadratic.beside is None
    wanted = summed(tasks[:3])
    both = summed(tasks[3:])
    wanted.add(both.importance, both.basis, SHAPES)
    for name, one in wanted.importance.items():
        torch.testing.assert_close(store.gated[4][name], one, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("ranks", "arguments"),
    [
        ((2, 2, 1), {}),  # the sum is small
        ((2, 2, 2, 2), {}),  # the task is not
        (RANKS, {"decay": 0.5}),
        (RANKS, {"damping": 0.1}),
        (RANKS, {"gate": {"threshold": 0.5, "probability": 0.9}}),
    ],
    ids=["small sum", "large task", "online", "damped", "gated"],
)
def test_nothing_waits_where_that_saves_nothing_or_changes_what_is_held(ranks, arguments):
    assert lived(ranks, **arguments)[0].quadratic.beside is None


def test_what_is_read_of_the_sum_is_of_all_tasks_and_reading_changes_nothing():
    store, tasks, _ = lived()
    before = store.state_dict()
    total = summed(tasks)
    assert store.basis.keys() == total.basis.keys() == {"w"}
    for name, one in total.importance.items():
        torch.testing.assert_close(store.gated[3][name], one, rtol=1e-12, atol=1e-14)
    assert differing(before, store.state_dict()) == []


def test_a_store_goes_on_from_a_state_in_which_a_task_waits():
    store, _, _ = lived()
    other = store_of("kronecker", rank=2)
    other.load_state_dict(store.state_dict())
    assert other.quadratic.beside is not None
    fisher, basis = measured("kronecker", 7, rank=1)
    for one in (store, other):
        one.add(4, fisher, basis, drawn_weights(7, SHAPES), ())
        one.hold(drawn_weights(7, SHAPES), {}, torch.Generator())
    assert differing(store.state_dict(), other.state_dict()) == []
    other.load_state_dict(lived((2, 2))[0].state_dict())
    assert other.quadratic.beside is None


def test_a_state_of_a_version_that_let_nothing_wait_is_read():
    state = lived(RANKS[:3])[0].state_dict()
    del state["waiting"], state["quadratic"]["beside"]
    store, _, _ = lived()
    store.load_state_dict(state)
    assert store.quadratic.beside is None and store.names == SHAPES.keys()
    assert store.gated.keys() == {2}


def test_a_network_may_grow_while_a_task_waits():
    store, tasks, newest = lived()
    grown = {"w": torch.Size([6, 7]), "b": torch.Size([6]), "norm": torch.Size([3])}
    params = drawn_weights(50, grown)
    store.grow(params)
    store.hold(params, {}, torch.Generator())
    away = {n: params[n][tuple(map(slice, s))] - newest[n] for n, s in SHAPES.items()}
    wanted = 0.35 * (value(summed(tasks[:3]), away) + value(summed(tasks[3:]), away))
    torch.testing.assert_close(store.quadratic.penalty(params, 0.7), wanted, rtol=1e-12, atol=0)
    assert store.gated[3]["norm"].shape == (3,) and store.basis["w"].left.shape[0] == 6


def test_a_proximal_step_holds_one_sum_of_all():
    """Two steps, one after the other, would come to rest elsewhere than the sum of both."""
    store, tasks, newest = lived()
    store.join()
    assert store.quadratic.beside is None
    now, total = drawn_weights(99, SHAPES), summed(tasks)
    away = {name: now[name] - newest[name] for name in now}
    torch.testing.assert_close(
        store.quadratic.penalty(now, 0.7), 0.35 * value(total, away), rtol=1e-12, atol=0
    )
    before = store.state_dict()
    store.join()
    assert differing(before, store.state_dict()) == []


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_with_a_proximal_step_ends_where_loss_and_penalty_are_lowest(momentum):
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False).double()
    penalty = WeightPenalty(rank=4)
    for _ in range(12):
        penalty.remember(model, torch.randn(3, 30).double())
    old = model.weight.detach().clone()
    target, images = torch.randn(9, 20).double(), torch.randn(9, 30).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=momentum)

    def loss():
        return 0.5 * (model(images) - target).square().sum(1).mean()

    for _ in range(1500):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        penalty.step(model, optimizer)
    held = penalty.store.quadratic.penalty(dict(model.named_parameters()), penalty.dwa_lambda)
    (gradient,) = torch.autograd.grad(loss() + held, model.weight)
    assert float((model.weight - old).abs().max()) > 0.1
    assert float(gradient.abs().max()) < 1e-3


def test_small_tasks_wait_where_the_penalty_is_in_the_loss_alone():
    torch.manual_seed(0)
    model, waited = nn.Linear(30, 20), {}
    for kind in (torch.optim.Adam, torch.optim.SGD):
        penalty, optimizer = WeightPenalty(rank=4), kind(model.parameters(), 0.01)
        for _ in range(12):
            penalty.remember(model, torch.randn(3, 30))
            penalty.loss(model, optimizer)
            waited.setdefault(kind.__name__, []).append(penalty.store.quadratic.beside is not None)
    assert any(waited["Adam"]) and not any(waited["SGD"])


def test_no_more_than_some_tasks_wait():
    store, _, _ = lived()
    counts = []
    for now in range(4, 60):  # of the same direction: there is never another one
        fisher, basis = measured("kronecker", 33, rank=1)
        store.add(now, fisher, basis, drawn_weights(now, SHAPES), ())
        store.hold(drawn_weights(now, SHAPES), {}, torch.Generator())
        counts.append(store.quadratic.beside is not None)
    assert counts.count(False) >= 3 and counts.count(True) > 40


def test_a_network_that_has_shrunk_is_refused_and_nothing_has_changed():
    store, _, _ = lived((2, 2, 2))
    before = store.state_dict()
    small = {"w": torch.Size([3, 5]), "b": torch.Size([3]), "norm": torch.Size([3])}
    fisher, basis = measured("kronecker", 5, small, 1)
    with pytest.raises(ValueError, match="none may shrink"):
        store.add(3, fisher, basis, drawn_weights(3, small), ())
    assert differing(before, store.state_dict()) == []


def test_a_layer_that_has_grown_and_is_frozen_then_is_brought_into_the_sum():
    grown = {"w": torch.Size([6, 7]), "b": torch.Size([6]), "norm": torch.Size([3])}
    store, _, _ = lived((2, 2, 2))
    fisher, basis = measured("kronecker", 33, grown, 1)
    store.add(3, fisher, basis, drawn_weights(3, grown), ())
    for now in range(4, 30):
        own = {"norm": torch.rand(3, dtype=torch.float64)}
        store.add(now, own, KroneckerBasis({}), {"norm": torch.zeros(3).double()}, ())
    params = drawn_weights(50, grown)
    store.grow(params)
    store.hold(params, {}, torch.Generator())
    assert store.quadratic.penalty(params, 1.0) > 0


@pytest.mark.parametrize(
    "arguments", [{"gate": {"threshold": 0.5, "probability": 0.9}}, {"damping": 0.1}]
)
def test_a_state_in_which_a_task_waits_is_one_sum_where_none_may_wait(arguments):
    store, tasks, _ = lived()
    damping = arguments.get("damping", 0.0)
    other = store_of("kronecker", rank=2, **{k: v for k, v in arguments.items() if k == "gate"})
    other.damping = damping
    other.load_state_dict(store.state_dict())
    total = summed(tasks)
    assert other.quadratic.beside is None
    torch.testing.assert_close(other.basis["w"].right.abs(), total.basis["w"].right.abs())


def test_what_is_kept_of_a_task_is_not_what_is_held():
    store, _, _ = lived()
    now = drawn_weights(99, SHAPES)
    before = store.quadratic.penalty(now, 1.0)
    for one in store.importances[3].values():
        one.zero_()
    assert torch.equal(store.quadratic.penalty(now, 1.0), before)


def test_tasks_of_ten_images_are_brought_into_the_sum_a_few_at_a_time(monkeypatch):
    taken, add = [], MergedBasis.add
    monkeypatch.setattr(
        MergedBasis, "add", lambda self, *args: (taken.append(self.directions), add(self, *args))
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 5))
    penalty = WeightPenalty(rank=8)
    for _ in range(30):
        penalty.remember(model, torch.randn(3, 60))
    late = taken[30:]
    assert max(taken) > 2 * 8 and OPEN["threshold"] == penalty.threshold
    assert sum(one > 8 for one in late) < len(late) / 3
