"""Stratified draws: counts, disjointness, and the rows that the kept results were made with."""

import pytest
import torch

from benchmarks.data import draws


@pytest.fixture
def data():
    labels = torch.randint(5, (97,), generator=torch.Generator().manual_seed(3))
    return torch.arange(97.0), labels


def test_a_draw_has_as_many_rows_of_every_class(data):
    x, y = draws.draw(data, 6, seed=4)
    assert torch.bincount(y).tolist() == [6] * 5 and len(x.unique()) == 30
    assert torch.equal(data[1][x.long()], y)
    few = draws.draw(data, 1000, seed=4)  # a class that has fewer gives all it has
    assert sorted(few[0].tolist()) == data[0].tolist()


def test_the_rest_of_a_draw_is_all_that_was_not_drawn(data):
    (first, _), (rest, labels) = draws.split_off(data, 6)
    assert torch.equal(first, draws.draw(data, 6)[0])
    assert sorted([*first.tolist(), *rest.tolist()]) == data[0].tolist()
    assert torch.equal(labels, data[1][rest.long()]) and rest.tolist() == sorted(rest.tolist())


def test_classes_keep_their_shares(data):
    rows = draws.shared_rows(data[1], 40, seed=5)
    whole, part = torch.bincount(data[1]) * 40 / 97, torch.bincount(data[1][rows])
    assert len(set(rows)) == 40 == int(part.sum()) and (part - whole).abs().max() < 1


def test_parts_share_no_row_and_a_small_class_is_shared_out(data):
    counts = torch.bincount(data[1])
    large, small = draws.disjoint(data, (30, 10), seed=2)  # more than any class has
    assert not set(large[0].tolist()) & set(small[0].tolist())
    for label, count in enumerate(counts.tolist()):
        assert int((large[1] == label).sum()) == int(30 * min(1.0, count / 40))
        assert int((small[1] == label).sum()) == int(10 * min(1.0, count / 40))


def test_draws_are_those_of_the_kept_results(data):
    assert draws.draw(data, 6)[0].tolist()[:8] == [61, 38, 68, 20, 22, 3, 42, 26]
    assert draws.draw(data, 6, seed=4)[0].tolist()[:8] == [33, 88, 3, 55, 10, 30, 5, 43]
    assert draws.shared_rows(data[1], 40, seed=5)[:8] == [3, 4, 7, 11, 15, 16, 17, 18]
    first, second = draws.disjoint(data, (9, 5), seed=2)
    assert first[0].tolist()[:8] == [75, 12, 7, 29, 62, 30, 16, 89]
    assert second[0].tolist()[:4] == [93, 85, 4, 94]
