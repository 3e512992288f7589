import random

import numpy as np
import pytest
import torch
from stores import ONE, Counting
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from avalanche_cetl import (
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.common.seeds import seeded
from avalanche_cetl.features.extraction import Extraction
from avalanche_cetl.features.store import stored_features
from avalanche_cetl.features.views import SeededView, may_draw


def random_benchmark(digits, noise=0.2):
    augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(8, 2), Noise(noise)])
    return transfer_benchmark(
        digits(60), digits(30, seed=1), train_transform=augment, eval_transform=v2.Identity()
    )


class Noise:
    """Draws from all three global generators."""

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        draws = torch.rand(()) + float(np.random.rand()) + random.random()
        return x + self.size * draws


def test_image_and_features_are_always_of_the_same_view(tmp_path, digits, encoder):
    benchmark = random_benchmark(digits)
    stored = with_source_features(benchmark, encoder, tmp_path, views=3, dtype="float32")
    dataset = stored.train_stream[0].dataset
    for i in range(0, 60, 13):
        seen = set()
        for _ in range(30):
            x, _, features, _ = dataset[i]
            torch.testing.assert_close(features, encoder(x[None])[0])
            seen.add(x.numpy().tobytes())
        assert len(seen) == 3
        x, _, features, _ = dataset.eval()[i]
        assert torch.equal(x, benchmark.train_stream[0].dataset.eval()[i][0])
        torch.testing.assert_close(features, encoder(x[None])[0])
    test = stored.test_stream[0].dataset
    assert torch.equal(test.train()[4][0], test.eval()[4][0])


def test_views_are_reproducible_and_each_is_stored_once(tmp_path, digits, encoder):
    benchmark = random_benchmark(digits)
    first = with_source_features(benchmark, encoder, tmp_path, views=2)
    once = Counting.images
    assert once == 60 + 2 * 60 + 30
    torch.rand(7)
    again = with_source_features(benchmark, encoder, tmp_path, views=2)
    assert Counting.images == once
    with_source_features(benchmark, encoder, tmp_path, views=3)
    assert Counting.images == once + 60
    with_source_features(random_benchmark(digits, 0.3), encoder, tmp_path)
    assert Counting.images == once + 2 * 60
    with_source_features(benchmark, encoder, tmp_path, seed=1)
    assert Counting.images == once + 3 * 60
    mine, yours = (b.train_stream[0].dataset for b in (first, again))
    torch.manual_seed(0)
    wanted = [mine[i] for i in range(10)]
    torch.manual_seed(0)
    for i in range(10):
        assert all(torch.equal(a, b) for a, b in zip(yours[i][:1], wanted[i][:1], strict=True))


class Flips(TensorDataset):
    """Turns one image in ten round as it is read."""

    def __init__(self, *tensors, generator=None):
        super().__init__(*tensors)
        self.generator = generator

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return (x.flip(-1) if torch.rand((), generator=self.generator) < 0.1 else x), y


def _flips(generator=None):
    x = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SeededView(Flips(x, torch.zeros(100), generator=generator), 0, 0)


def test_a_subclass_of_tensor_data_sets_may_draw(tmp_path, encoder):
    assert not may_draw(TensorDataset(torch.zeros(1))) and may_draw(_flips().dataset)
    view = _flips()
    with seeded("one"):
        rows = stored_features(tmp_path, encoder, view, "float32", Extraction(progress=False), ONE)
    images = torch.stack([view.image(row) for row in range(len(view))])
    torch.testing.assert_close(rows.tensor(), encoder(images))


def test_a_data_set_that_rarely_gives_another_image_is_refused(tmp_path, encoder):
    view = _flips(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"row \d+ is another image.*generator of its own"):
        stored_features(tmp_path, encoder, view, "float32", Extraction(progress=False), ONE)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_transform_with_a_generator_of_its_own_is_refused(tmp_path, digits, encoder):
    own = torch.Generator().manual_seed(0)
    benchmark = transfer_benchmark(
        digits(20), digits(20), train_transform=lambda x: x + torch.rand((), generator=own)
    )
    with pytest.raises(ValueError, match="generator of its own"):
        with_source_features(benchmark, encoder, tmp_path)
