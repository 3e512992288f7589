"""Random views of digits and photographs."""

import torch

from benchmarks.data.views import JitterOne, inverting_views, jitter, strong_views, views


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


def test_strong_views_keep_the_range_and_differ_from_image_to_image():
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).expand(64, -1, -1, -1)
    torch.manual_seed(0)
    seen = strong_views(x)
    assert seen.shape == x.shape and seen.min() >= 0 and seen.max() <= 1
    assert len(seen.flatten(1).unique(dim=0)) == 64
    grey = (seen == 0.5).all(1).flatten(1).sum(1)
    assert grey.max() == 81 and grey.min() >= 25  # a square of 9 x 9, cut off at the border


def test_half_of_the_inverting_views_are_inverted_and_no_other_strong_view():
    x = torch.zeros(400, 1, 16, 16)
    x[:, :, 4:12, 4:12] = 0.7  # brighter in the middle
    torch.manual_seed(0)

    def darker(seen):
        middle, whole = seen[:, 0, 6:10, 6:10].mean((1, 2)), seen.mean((1, 2, 3))
        return float((middle < whole).float().mean())

    assert darker(strong_views(x)) < 0.15  # by the square that is cut out
    assert 0.4 < darker(inverting_views(x)) < 0.6
