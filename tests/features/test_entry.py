"""Shards, checksums, kills, locks: what an entry of the store promises about its files."""

import errno
import json
import os
import random
import signal
import time

import pytest
import stores
import torch
from stores import ROWS, Moments, contents, extract, images, seen, started

from avalanche_cetl import FeatureStoreError
from avalanche_cetl.features import entry as entries
from avalanche_cetl.features import shards

pytestmark = pytest.mark.usefixtures("small_shards")


def test_manifest_and_shards_hold_no_pickle_and_name_what_they_are(tmp_path):
    extract(tmp_path)
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == ROWS and manifest["dim"] == 2 and len(manifest["shards"]) == 10
    assert manifest["made_by"] == "Moments()" and manifest["format"] == entries.FORMAT
    names = {p.name for p in folder.iterdir()} - {".lock"}
    assert names == {"manifest.json", "origin.json"} | {s["file"] for s in manifest["shards"]}


class Powers(Moments):
    """Another network for each exponent, of one fingerprint."""

    def __init__(self, exponent, log=None):
        super().__init__(log)
        self.exponent = exponent

    def encode(self, x):
        return super().encode(x) ** self.exponent


def test_networks_of_one_fingerprint_have_entries_of_their_own(tmp_path):
    log = tmp_path / "log"
    made = [Powers(exponent, log) for exponent in (1, 2, 3)]
    assert len({one.fingerprint() for one in made}) == 1
    for encoder in (*made, *reversed(made)):
        found = extract(tmp_path / "store", encoder).tensor()
        assert torch.equal(found, Moments()(images()) ** encoder.exponent)
    assert seen(log) == 3 * ROWS and len(list((tmp_path / "store").iterdir())) == 3
    # Killed before the manifest was written, its shards still are of the first network.
    for manifest in (tmp_path / "store").rglob("manifest.json"):
        manifest.unlink()
    found = extract(tmp_path / "store", Powers(2, log)).tensor()
    assert torch.equal(found, Moments()(images()) ** 2) and seen(log) == 3 * ROWS


def as_of_0_2(store, shards=None):
    """Make an entry one of version 0.2, of which some shards alone may be there."""
    (folder,) = store.iterdir()
    (folder / "origin.json").unlink()
    if shards is not None:
        (folder / "manifest.json").unlink()
        for path in sorted(folder.glob("shard-*")):
            path.unlink() if path.name[6:12] not in shards else None


@pytest.mark.parametrize("shards", [None, ["000000", "000002"]])
def test_what_version_0_2_stored_is_taken_where_the_network_gives_it(tmp_path, shards):
    log = tmp_path / "log"
    extract(tmp_path / "store", Powers(1))
    as_of_0_2(tmp_path / "store", shards)
    other = extract(tmp_path / "store", Powers(3)).tensor()
    assert torch.equal(other, Moments()(images()) ** 3)
    assert torch.equal(extract(tmp_path / "store", Powers(1, log)).tensor(), Moments()(images()))
    # Two rows are compared, once more under the lock, and what was not stored is computed.
    assert seen(log) == 2 + (0 if shards is None else 2 + ROWS - 16)


def test_shards_of_which_the_first_is_missing_may_be_of_any_network(tmp_path):
    log = tmp_path / "log"
    extract(tmp_path / "store", Powers(1))
    as_of_0_2(tmp_path / "store", ["000002"])
    extract(tmp_path / "store", Powers(1, log))
    assert seen(log) == ROWS


def test_a_network_that_comes_first_by_a_moment_keeps_its_entry(tmp_path, monkeypatch):
    complete = entries.Entry.complete

    def late(entry):
        monkeypatch.setattr(entries.Entry, "complete", complete)
        extract(tmp_path / "store", Powers(3))  # between the look at an entry and its lock
        return complete(entry)

    monkeypatch.setattr(entries.Entry, "complete", late)
    for _ in range(2):
        found = extract(tmp_path / "store", Powers(1)).tensor()
        assert torch.equal(found, Moments()(images()))
    assert torch.equal(extract(tmp_path / "store", Powers(3)).tensor(), Moments()(images()) ** 3)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"answers": [1]}'])
def test_an_entry_that_does_not_say_of_which_network_it_is_is_made_again(tmp_path, content):
    log = tmp_path / "log"
    extract(tmp_path / "store", Moments(log))
    (origin,) = (tmp_path / "store").rglob("origin.json")
    origin.write_bytes(content)
    found = extract(tmp_path / "store", Moments(log)).tensor()
    assert torch.equal(found, Moments()(images())) and seen(log) == 2 * ROWS


@pytest.mark.parametrize("listed", [True, False])
def test_a_flipped_byte_in_each_of_ten_shards_is_found(tmp_path, listed):
    extract(tmp_path)
    good = contents(tmp_path)
    (folder,) = tmp_path.iterdir()
    draw = random.Random(0)
    shards = sorted(folder.glob("shard-*"))
    assert len(shards) == 10
    for shard in shards:
        raw = bytearray(shard.read_bytes())
        header = 8 + int.from_bytes(raw[:8], "little")
        # Without the manifest a shard vouches for itself: for key, place and values.
        at = draw.randrange(0 if listed else header, len(raw))
        raw[at] ^= 1 << draw.randrange(8)
        shard.write_bytes(bytes(raw))
    if not listed:
        (folder / "manifest.json").unlink()
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
    (folder,) = (tmp_path / "store").iterdir()
    path = folder / "shard-000003.safetensors"
    if damage == "delete":
        path.unlink()
    elif damage == "swap":
        path.write_bytes((folder / "shard-000004.safetensors").read_bytes())
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
    (folder,) = (tmp_path / "store").iterdir()
    (folder / "manifest.json").write_bytes(text)
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
    "in a batch": (stores, "note", True),
    "before a shard reaches the disk": (os, "fsync", False),
    "between a shard and its name": (os, "replace", False),
    "after a shard got its name": (os, "replace", True),
}


def test_features_of_a_killed_run_are_completed_to_the_same_bytes(tmp_path):
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

    monkeypatch.setattr(entries.logger, "info", info)
    rows = extract(folder, Moments(log))
    other.join()
    assert other.exitcode == 0 and seen(log) == ROWS
    assert len(told) == 1 and told[0].startswith("waiting for another process")
    assert torch.equal(rows.tensor(), Moments()(images()))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "read-only"),
        (errno.EIO, "could not be written"),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_an_error_and_leaves_nothing(
    tmp_path, monkeypatch, number, message
):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:  # two for each file: its content and its name; first is the origin's
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


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match="could not be written"):
        extract(tmp_path / "file" / "store")


def test_a_whole_entry_is_read_from_a_folder_without_write_access(tmp_path, monkeypatch):
    extract(tmp_path)

    def refuses(*args, **kwargs):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(entries, "FileLock", refuses)
    monkeypatch.setattr(entries, "write_atomically", refuses)
    assert torch.equal(extract(tmp_path).tensor(), Moments()(images()))
