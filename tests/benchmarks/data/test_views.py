"""Random views of digits and photographs."""

import torch

from benchmarks.data.views import JitterOne, jitter, views


def test_views_of_photographs_are_flipped_and_shifted():
    x = torch.arange(32.0).expand(200, 3, 32, 32) + 1
    torch.manual_seed(0)
    seen = views(x)
    assert seen.shape == x.shape
    rising = (seen[:, 0, 16, 20] > seen[:, 0, 16, 12]).float().mean()
    assert 0.35 < rising < 0.65  # half of them are flipped
    shifts = {int(row[16] - 17) for row in seen[:, 0, 16] if row[20] > row[12]}
    assert shifts == set(range(-4, 5))


def test_digits_are_moved_each_on_its_own(digits):
    x, _ = digits(4)
    same = x[:1].expand(4, -1, -1, -1)
    moved = jitter(same)
    assert moved.shape == same.shape and not torch.equal(moved, same)
    assert not torch.equal(moved[0], moved[1])
    assert JitterOne()(x[0]).shape == x[0].shape
