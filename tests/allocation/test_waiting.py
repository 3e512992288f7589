"""Small tasks that wait for each other before a large sum takes them in."""

import pytest
import torch
from naive_bases import drawn_weights, quadratic
from stores import OPEN, SHAPES, differing, measured, store_of
from torch import nn

from avalanche_cetl.allocation import WeightPenalty
from avalanche_cetl.allocation.merged_basis import MergedBasis
from avalanche_cetl.information.generalized import normalize_importance

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


def test_the_proximal_step_holds_both_sums():
    store, _, newest = lived()
    start = drawn_weights(99, SHAPES)
    params = {name: nn.Parameter(one.clone()) for name, one in start.items()}
    optimizer = torch.optim.SGD(params.values(), 1e-6)
    store.quadratic.step(params, optimizer, 1.0)
    leaves = {name: one.clone().requires_grad_() for name, one in start.items()}
    store.quadratic.penalty(leaves, 1.0).backward()
    for name, one in params.items():  # one small explicit step, to first order
        torch.testing.assert_close(
            one.data - start[name], -1e-6 * leaves[name].grad, rtol=1e-4, atol=1e-10
        )
    store.quadratic.step(params, torch.optim.SGD(params.values(), 1e6), 1e6)
    apart = {name: one.data - newest[name] for name, one in params.items()}
    assert float(store.quadratic.beside.penalty(dict(params), 1.0)) < 1e-9
    assert float(abs(apart["norm"]).max()) < 1e-4


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
