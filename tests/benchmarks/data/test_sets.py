"""Photographs: draws that share no image, and pixels that come back."""

import pytest
import torch

from benchmarks.data import sets


@pytest.fixture
def photographs(monkeypatch):
    """Read a data set that is made here, of ten classes."""
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.rand(10 * count, 3, 8, 8, generator=generator) for count in (30, 5))
    labels = [torch.arange(len(x)) % 10 for x in (train, test)]
    found = ((train, labels[0]), (test, labels[1]), "made here")
    monkeypatch.setattr(sets, "read_cifar10", lambda root: found)
    sets.read_data.cache_clear()
    yield lambda *args, **settings: sets.read_data("CIFAR-10", "nowhere", *args, **settings)
    sets.read_data.cache_clear()


def test_training_images_are_not_those_of_validation_and_test(photographs):
    data = photographs(12, 4, test_per_class=3)
    assert [len(data.part(name)[1]) for name in ("train", "validation", "test")] == [120, 40, 30]
    held = torch.cat([data.validation[0], data.test[0]]).flatten(1)
    assert torch.cdist(data.train[0].flatten(1), held).min() > 1
    assert data.classes == 10 and data.kind == "CIFAR-10 (made here)"


def test_unlabelled_and_mixed_images_come_behind_the_draw(photographs):
    plain, more = photographs(12, 4), photographs(12, 4, unlabelled_per_class=8, mixed=2)
    x, y = more.train
    assert torch.equal(x[:120], plain.train[0]) and torch.equal(y[:120], plain.train[1])
    assert len(y) == 3 * (120 + 80) and (y[120:] == -1).all()
    assert torch.cdist(x[120:200].flatten(1), x[:120].flatten(1)).min() > 1
    for part in ("validation", "test"):
        assert torch.equal(more.part(part)[0], plain.part(part)[0])


def test_standardised_pixels_come_back():
    pixels = sets.Pixels(torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3]))
    image = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(pixels.restore(pixels.standardise(image)), image)
