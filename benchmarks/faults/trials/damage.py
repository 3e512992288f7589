"""Checkpoint files that are missing, cut off, changed or forged."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from avalanche_cetl import (
    CheckpointError,
    load_checkpoint,
)
from benchmarks.faults.subject import make, model
from benchmarks.faults.trials.outcome import refused, saved

#: The version of the format, as it stands in the header of a checkpoint.
VERSION = re.compile(rb'"version":"(\d+)"')


def missing(folder: Path) -> str:
    """No such file."""
    return refused(CheckpointError, lambda: load_checkpoint(make(), folder / "none"), "none")


def truncated(folder: Path) -> str:
    """A file cut off anywhere."""
    path = saved(folder)
    content = path.read_bytes()
    said = ""
    for end in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        said = refused(CheckpointError, lambda: load_checkpoint(make(), path), "damaged")
    return said


def one_bit(folder: Path) -> str:
    """One bit changed, anywhere."""
    path = saved(folder)
    content = path.read_bytes()
    said = ""
    for place in range(0, len(content), max(1, len(content) // 25)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        said = refused(CheckpointError, lambda: load_checkpoint(make(), path), str(path))
    return said


def another_version(folder: Path) -> str:
    """A file of a later release."""
    path = saved(folder)
    later = VERSION.sub(lambda found: b'"version":"%s"' % (b"9" * len(found[1])), path.read_bytes())
    path.write_bytes(later)  # as long as it was: the header's length stands in front of it
    return refused(CheckpointError, lambda: load_checkpoint(make(), path), "version")


def another_network(folder: Path) -> str:
    """A checkpoint of a wider network."""
    path = saved(folder)
    return refused(
        CheckpointError,
        lambda: load_checkpoint(make(model(width=0.1)), path),
        "another network",
    )


def a_pickle(folder: Path) -> str:
    """A pickle that would run code when it is loaded by pickle."""
    marker = folder / "executed"
    (folder / "x.safetensors").write_bytes(
        b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    )
    said = refused(
        CheckpointError, lambda: load_checkpoint(make(), folder / "x.safetensors"), "damaged"
    )
    assert not marker.exists(), "it was executed"
    return said


def bombs(folder: Path) -> str:
    """Small files that claim to be huge, or to be nested without end."""
    path = folder / "x.safetensors"
    (version,) = VERSION.findall(saved(folder).read_bytes())
    about = {"format": "avalanche-cetl checkpoint", "version": version.decode()}
    about["sha256"] = "0" * 64
    huge = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    headers: list[bytes] = [
        json.dumps({"__metadata__": {**about, "state": "{}"}, "t": huge}).encode(),
        json.dumps({"__metadata__": {**about, "state": "[" * 10**6}}).encode(),
        b"[" * 10**6,
        b'{"__metadata__":' * 10**5,
    ]
    said = ""
    for header in headers:
        header = header.replace(b'"sha256": ', b'"sha256":')
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        said = refused(CheckpointError, lambda: load_checkpoint(make(), path), "damaged")
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(CheckpointError, lambda: load_checkpoint(make(), path), "damaged")
    return said
