import os

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from stores import ROWS, Moments, contents, extract, images, seen
from torch import nn

from avalanche_cetl import (
    Encoder,
    ModuleEncoder,
    PrecomputedEncoder,
    SoftTargets,
    adaptation_benchmark,
    transfer_benchmark,
    with_source_features,
)

pytestmark = pytest.mark.usefixtures("small_shards")


def test_features_are_computed_once_for_the_same_images_and_encoder(tmp_path):
    log = tmp_path / "log"
    extract(tmp_path / "store", Moments(log))
    again = extract(tmp_path / "store", Moments(log))
    assert seen(log) == ROWS
    assert torch.equal(again.tensor(), Moments()(images()))


def test_anything_that_differs_has_an_entry_of_its_own(tmp_path):
    class Other(Moments):
        def extra_repr(self):
            return "other"

    changed = images()
    changed[70, 0, 3, 3] += 1e-6

    class Code(Moments):
        def preprocess(self, x):
            return x * 2

    Other.__qualname__ = Code.__qualname__ = Moments.__qualname__
    extract(tmp_path)
    extract(tmp_path, Code())
    extract(tmp_path, x=changed)
    extract(tmp_path, x=images().double())
    extract(tmp_path, x=images(ROWS - 1))
    extract(tmp_path, dtype="float16")
    extract(tmp_path, Other())
    assert len(list(tmp_path.iterdir())) == 7


def test_two_ranks_write_the_same_bytes_as_one_process(tmp_path, two_processes):
    both = two_processes(
        f"""
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from stores import Extraction, Moments, Processes, stored_features, view
        from avalanche_cetl.features import shards
        shards.SHARD_ROWS = 8
        log = Path({str(tmp_path)!r}) / f"log{{rank}}"
        for _ in range(2):
            rows = stored_features(
                Path({str(tmp_path)!r}) / "two", Moments(log), view(), "float32",
                Extraction(4, progress=False), Processes(world),
            )
        assert len(rows.tensor()) == 75
        """
    )
    both.succeed()
    extract(tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    counts = [seen(tmp_path / f"log{rank}") for rank in (0, 1)]
    assert sum(counts) == ROWS and min(counts) == 35


def test_precomputed_rows_of_an_adaptation_are_the_targets_the_tests_and_the_sources():
    y = torch.arange(4) % 2
    source, target, test = ((torch.full((4, 1, 8, 8), level), y) for level in (0.1, 0.5, 0.9))
    for transductive, order in ((False, (0.5, 0.1)), (True, (0.5, 0.9, 0.1))):
        made = adaptation_benchmark(source, target, test, transductive=transductive)
        features = torch.cat([torch.full((4, 3), level) for level in order])
        encoder = PrecomputedEncoder({"train": features})
        for row in with_source_features(made, encoder, streams=["train"]).train_stream[0].dataset:
            assert float(row[0].mean()) == pytest.approx(float(row[2].mean()))


def _network(side=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, 4))


def test_a_transform_whose_helper_has_changed_has_features_of_its_own(tmp_path):
    x, y = 0.3 + 0.2 * torch.rand(6, 1, 32, 32), torch.arange(6) % 2
    benchmark, stretch = transfer_benchmark((x, y), (x, y)), {"on": False}

    def helper(images):
        low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
        return (images - low) / (high - low) if stretch["on"] else images

    global _helper
    _helper = helper
    for on in (False, True, False):
        stretch["on"] = on
        encoder = ModuleEncoder(_network(32), input_shape=(1, 32, 32), transform=_by_a_global)
        made = with_source_features(benchmark, encoder, tmp_path, progress=False)
        row = made.train_stream[0].dataset[0]
        torch.testing.assert_close(row[2].float(), encoder(row[0][None])[0], rtol=0.01, atol=0.01)


def _by_a_global(images):
    return _helper(images)


class Unfrozen(Encoder):
    dim = 4

    def __init__(self, affine):
        super().__init__()
        norm = nn.BatchNorm2d(4, affine=affine)
        self.net = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def encode(self, x):
        return self.net(x.expand(-1, 4, -1, -1))


def test_an_encoder_that_was_not_frozen_is_refused_or_runs_in_evaluation_mode(tmp_path):
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    benchmark, without = transfer_benchmark((x, y), (x, y)), Unfrozen(False)
    with pytest.raises(ValueError, match=r"self.freeze\(\) at the end of Unfrozen"):
        with_source_features(benchmark, Unfrozen(True), tmp_path)
    with pytest.raises(ValueError, match=r"self.freeze\(\)"):
        SoftTargets(source=Unfrozen(True))
    with_source_features(benchmark, without, tmp_path, progress=False)
    assert not without.net[0].running_mean.any() and not without.net[0].training


def test_data_sets_stay_in_their_mode(tmp_path):
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
    black = transfer_benchmark((x, y), (x, y), train_transform=lambda image: 0 * image)
    dataset = black.train_stream[0].dataset
    benchmark = benchmark_from_datasets(train=[dataset], valid=[dataset.eval()])
    encoder = ModuleEncoder(_network(), input_shape=(1, 8, 8))
    made = with_source_features(benchmark, encoder, tmp_path, progress=False)
    assert not made.train_stream[0].dataset[0][0].any()
    assert torch.equal(made.valid_stream[0].dataset[0][0], x[0])
    assert not made.valid_stream[0].dataset.train()[0][0].any()
