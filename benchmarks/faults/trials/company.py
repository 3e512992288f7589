"""Clocks that go backwards, and several at once."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import torch

from avalanche_cetl import (
    CETLPlugin,
    CheckpointPlugin,
    load_checkpoint,
    with_source_features,
)
from benchmarks.faults.subject import make, model
from benchmarks.faults.trials.outcome import benchmark, replaced


def clock_goes_back(folder: Path) -> str:
    """The system's clock is set back between two checkpoints; the newest is still the newest."""
    start = time.time()
    now = [start]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    class Older(CETLPlugin):
        """Makes every checkpoint look older than the one before."""

        def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            """Set the files' times back."""
            for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
                os.utime(path, (start - 3600 * number, start - 3600 * number))

    with replaced(time, "time", earlier):
        strategy = make(train_epochs=3, plugins=[Older(), CheckpointPlugin(folder)])
        strategy.train(benchmark().train_stream, eval_streams=[])
        again = make(train_epochs=3, plugins=[Older(), CheckpointPlugin(folder)])
        assert load_checkpoint(again, folder).rounds == 3
    return "the newest checkpoint is found by its number"


def one_cache_for_three(folder: Path) -> str:
    """Three at once want the same features in the same folder."""
    encoder = model().source
    assert encoder is not None
    found: list[Any] = [None] * 3

    def work(number: int) -> None:
        stream = with_source_features(benchmark(), encoder, folder, streams=["train"]).train_stream
        found[number] = torch.stack(list(stream[0].dataset.source_features))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one is not None and torch.equal(one, found[0]) for one in found)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1
    return "the same features for all, computed once"
