import os

import pytest
import torch
from stores import ROWS, Moments, contents, extract, images, seen

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
