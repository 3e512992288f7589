"""Disks that are full or may not be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from avalanche_cetl import (
    CheckpointError,
    FeatureStoreError,
    load_checkpoint,
    save_checkpoint,
    with_source_features,
)
from benchmarks.faults.subject import make, model
from benchmarks.faults.trials.outcome import benchmark, refused, replaced, saved


def _failing_disk(folder: Path, code: int, told: str) -> str:
    path = saved(folder)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    strategy = make(train_epochs=1)
    strategy.train(benchmark().train_stream, eval_streams=[])
    with replaced(os, "fsync", full):
        said = refused(CheckpointError, lambda: save_checkpoint(strategy, path), told)
    assert path.read_bytes() == before, "the old checkpoint is gone"
    assert [p.name for p in folder.iterdir()] == [path.name], "something was left"
    load_checkpoint(make(train_epochs=1), path)
    return said


def disk_full(folder: Path) -> str:
    """No space when a checkpoint is written: the old one stays."""
    return _failing_disk(folder, errno.ENOSPC, "disk is full")


def read_only(folder: Path) -> str:
    """A folder that may not be written."""
    return _failing_disk(folder, errno.EROFS, "read-only")


def disk_full_for_features(folder: Path) -> str:
    """No space in the feature store."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    encoder = model().source
    assert encoder is not None
    with replaced(os, "fsync", full):
        said = refused(
            FeatureStoreError,
            lambda: with_source_features(benchmark(), encoder, folder),
            "disk is full",
        )
    with_source_features(benchmark(), encoder, folder)
    return said


def folder_is_a_file(folder: Path) -> str:
    """A file stands where the folder should be."""
    (folder / "x").write_text("here")
    strategy = make()
    return refused(
        CheckpointError, lambda: save_checkpoint(strategy, folder / "x" / "y.safetensors"), "x"
    )
