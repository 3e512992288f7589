"""Shards, checksums, kills, locks: what the store promises about its files."""

import errno
import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch

from avalanche_cetl import Encoder, FeatureStoreError
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.features import shards, store
from avalanche_cetl.features.store import Extraction, stored_features
from avalanche_cetl.features.views import SeededView

ROWS = 75
ONE = Processes(None)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 8)


def note(log, count):
    with open(log, "a") as file:
        file.write(f"{count}\n")


class Moments(Encoder):
    """Mean and deviation of an image; notes in a file every batch it sees."""

    dim = 2

    def __init__(self, log=None):
        super().__init__()
        self.log = log
        self.freeze()

    def encode(self, x):
        if self.log is not None:
            note(self.log, len(x))
        return torch.stack([x.flatten(1).mean(1), x.flatten(1).std(1)], 1)


def images(rows=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 1, 4, 4, generator=generator)


def view(x=None):
    x = images() if x is None else x
    return SeededView([(image, 0) for image in x], 0, 0)


def extract(folder, encoder=None, x=None, dtype="float32", batch_size=4, **options):
    encoder = Moments() if encoder is None else encoder
    extraction = Extraction(batch_size, progress=False, **options)
    return stored_features(folder, encoder, view(x), dtype, extraction, ONE)


def seen(log):
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.name[0] != "."
            and p.is_file()}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_the_encoders(tmp_path, dtype):
    rows = extract(tmp_path, dtype=dtype)
    wanted = Moments()(images()).to(getattr(torch, dtype))
    assert len(rows) == ROWS and rows.dim == 2
    assert torch.equal(rows.tensor(), wanted)
    assert all(torch.equal(rows[i], wanted[i]) for i in range(-ROWS, ROWS))
    assert torch.equal(torch.stack(rows[3:20:4]), wanted[3:20:4])
    with pytest.raises(IndexError):
        rows[ROWS]


def test_computed_once_for_the_same_images_and_encoder(tmp_path):
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


def test_manifest_and_shards_hold_no_pickle_and_name_what_they_are(tmp_path):
    extract(tmp_path)
    (entry,) = tmp_path.iterdir()
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["rows"] == ROWS and manifest["dim"] == 2 and len(manifest["shards"]) == 10
    assert manifest["made_by"] == "Moments()" and manifest["format"] == store.FORMAT
    names = {p.name for p in entry.iterdir()} - {".lock"}
    assert names == {"manifest.json"} | {s["file"] for s in manifest["shards"]}


@pytest.mark.parametrize("listed", [True, False])
def test_one_flipped_byte_in_each_of_ten_shards(tmp_path, listed):
    extract(tmp_path)
    good = contents(tmp_path)
    (entry,) = tmp_path.iterdir()
    draw = random.Random(0)
    shards = sorted(entry.glob("shard-*"))
    assert len(shards) == 10
    for shard in shards:
        raw = bytearray(shard.read_bytes())
        header = 8 + int.from_bytes(raw[:8], "little")
        # Without the manifest a shard vouches for itself: for key, place and values.
        at = draw.randrange(0 if listed else header, len(raw))
        raw[at] ^= 1 << draw.randrange(8)
        shard.write_bytes(bytes(raw))
    if not listed:
        (entry / "manifest.json").unlink()
    log = tmp_path / "log"
    with pytest.warns(RuntimeWarning) as warned:
        extract(tmp_path, Moments(log))
    named = [str(w.message) for w in warned]
    assert all(any(str(shard) in text for text in named) for shard in shards)
    assert seen(log) == ROWS
    log.unlink()
    assert contents(tmp_path) == good


@pytest.mark.parametrize("damage", ["truncate", "empty", "swap", "delete"])
def test_one_damaged_shard_costs_one_shard(tmp_path, damage):
    extract(tmp_path / "store")
    good = contents(tmp_path / "store")
    (entry,) = (tmp_path / "store").iterdir()
    path = entry / "shard-000003.safetensors"
    if damage == "delete":
        path.unlink()
    elif damage == "swap":
        path.write_bytes((entry / "shard-000004.safetensors").read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: -3 if damage == "truncate" else 0])
    log = tmp_path / "log"
    if damage == "delete":
        extract(tmp_path / "store", Moments(log))
    else:
        with pytest.warns(RuntimeWarning, match="shard-000003"):
            extract(tmp_path / "store", Moments(log))
    assert seen(log) == 8 and contents(tmp_path / "store") == good


def test_a_shard_of_another_entry_is_not_taken(tmp_path):
    extract(tmp_path / "a")
    extract(tmp_path / "b", x=images(seed=1))
    (mine,), (other,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    good = contents(tmp_path / "a")
    (mine / "manifest.json").unlink()
    name = "shard-000002.safetensors"
    (mine / name).write_bytes((other / name).read_bytes())
    with pytest.warns(RuntimeWarning, match="000002"):
        extract(tmp_path / "a")
    assert contents(tmp_path / "a") == good


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_a_broken_manifest_is_made_again_from_whole_shards(tmp_path, text):
    extract(tmp_path / "store")
    good = contents(tmp_path / "store")
    (entry,) = (tmp_path / "store").iterdir()
    (entry / "manifest.json").write_bytes(text)
    log = tmp_path / "log"
    extract(tmp_path / "store", Moments(log))
    assert seen(log) == 0 and contents(tmp_path / "store") == good


def child(folder, log, moment, calls):
    """Compute, and die as the system kills at a call of a function: before it, or right after."""
    torch.set_num_threads(1)
    owner, name, after = moment
    original, left = getattr(owner, name), [calls]

    def deadly(*args):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)
    extract(folder, Moments(log))


MOMENTS = {
    "in a batch": (sys.modules[__name__], "note", True),
    "before a shard reaches the disk": (os, "fsync", False),
    "between a shard and its name": (os, "replace", False),
    "after a shard got its name": (os, "replace", True),
}


def started(work, *arguments):
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def test_killed_at_any_moment_and_resumed_the_bytes_are_the_same(tmp_path):
    extract(tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    log, folder = tmp_path / "log", tmp_path / "killed"
    draw = random.Random(1)
    kills = 0
    for moment in [*MOMENTS.values()] * 2:
        process = started(child, folder, log, moment, draw.randint(1, 2))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert contents(folder) != wanted
    extract(folder, Moments(log))
    assert contents(folder) == wanted
    assert seen(log) <= ROWS + 8 * kills
    assert not list(folder.rglob("*.tmp"))


def test_killed_while_a_shard_is_being_written(tmp_path, monkeypatch):
    extract(tmp_path / "whole")

    def dies(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setattr(shards, "SHARD_ROWS", 8)
    assert len(list((tmp_path / "cut").rglob("*.tmp"))) == 1
    extract(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not list((tmp_path / "cut").rglob("*.tmp"))


def patient(folder, log, go):
    """Compute, and write the third shard when a file is there."""
    torch.set_num_threads(1)
    fsync = os.fsync

    def waits(descriptor):
        while len(list(folder.rglob("shard-*"))) == 2 and not go.exists():
            time.sleep(0.01)
        fsync(descriptor)

    os.fsync = waits
    extract(folder, Moments(log))


def test_of_two_processes_one_computes_and_one_waits(tmp_path, monkeypatch):
    log, folder, go = tmp_path / "log", tmp_path / "store", tmp_path / "go"
    other = started(patient, folder, log, go)
    while not list(folder.rglob("shard-*")):
        assert other.is_alive()
        time.sleep(0.01)
    told = []

    def info(message, *arguments):
        told.append(message % arguments)
        go.touch()

    monkeypatch.setattr(store.logger, "info", info)
    rows = extract(folder, Moments(log))
    other.join()
    assert other.exitcode == 0 and seen(log) == ROWS
    assert len(told) == 1 and told[0].startswith("waiting for another process")
    assert torch.equal(rows.tensor(), Moments()(images()))


def test_two_ranks_write_the_same_bytes_as_one_process(tmp_path, two_processes):
    both = two_processes(
        f"""
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from test_store import Extraction, Moments, Processes, shards, stored_features, view
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


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "read-only"),
        (errno.EIO, "could not be written"),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_said_and_leaves_nothing(
    tmp_path, monkeypatch, number, message
):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:  # two for each shard: its content and its name
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(FeatureStoreError, match=message):
        extract(tmp_path / "store")
    assert len(list((tmp_path / "store").rglob("shard-*"))) == 3
    assert not list((tmp_path / "store").rglob("*.tmp"))
    monkeypatch.undo()
    monkeypatch.setattr(shards, "SHARD_ROWS", 8)
    log = tmp_path / "log"
    extract(tmp_path / "store", Moments(log))
    assert seen(log) == ROWS - 3 * 8


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match="could not be written"):
        extract(tmp_path / "file" / "store")


def test_a_whole_entry_is_read_from_a_folder_without_write_access(tmp_path, monkeypatch):
    extract(tmp_path)

    def refuses(*args, **kwargs):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(store, "FileLock", refuses)
    monkeypatch.setattr(store, "write_atomically", refuses)
    assert torch.equal(extract(tmp_path).tensor(), Moments()(images()))


def test_a_shard_that_vanishes_later_is_said(tmp_path):
    rows = extract(tmp_path)
    for path in tmp_path.rglob("shard-*"):
        path.unlink()
    with pytest.raises(FeatureStoreError, match="cannot be read any more"):
        rows[0]


def test_features_that_are_not_finite_or_too_large_name_their_row(tmp_path):
    x = images()
    x[13] = float("nan")
    with pytest.raises(ValueError, match="row 13 are not finite"):
        extract(tmp_path, x=x)
    x[13] = 1e6
    with pytest.raises(ValueError, match=r"row 13 are too large for float16.*float32"):
        extract(tmp_path, x=x, dtype="float16")
    extract(tmp_path, x=x)


def test_images_of_several_shapes_and_no_tensors_are_refused(tmp_path):
    mixed = SeededView([(torch.rand(1, 4, 4), 0), (torch.rand(1, 5, 4), 0)], 0, 0)
    with pytest.raises(ValueError, match="several shapes"):
        stored_features(tmp_path, Moments(), mixed, "float32", Extraction(), ONE)
    with pytest.raises(TypeError, match="row 0 is a str"):
        stored_features(
            tmp_path, Moments(), SeededView([("a", 0)], 0, 0), "float32", Extraction(), ONE
        )
    with pytest.raises(ValueError, match="bfloat"):
        extract(tmp_path, dtype="bfloat16")
    for wrong in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match="has to be"):
            Extraction(**wrong)


def test_worker_processes_change_nothing(tmp_path):
    extract(tmp_path / "none")
    extract(tmp_path / "two", num_workers=2)
    assert contents(tmp_path / "none") == contents(tmp_path / "two")


def test_the_global_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    extract(tmp_path)
    assert torch.equal(torch.rand(3), wanted)
