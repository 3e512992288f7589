"""Faults tried one by one: each ends in a clear error or a right result.

A trial takes an empty folder, and returns in words what happened; it raises AssertionError when
what happened is neither.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_cetl import (
    CETLPlugin,
    CheckpointError,
    CheckpointPlugin,
    CoupledModel,
    FeatureStoreError,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.faults.subject import SHAPE, digits, make, model

Trial = Callable[[Path], str]


def _data(images: Tensor | None = None, **arguments: Any) -> Any:
    x, y = digits(48)
    return transfer_benchmark((x if images is None else images, y), digits(20, 200), **arguments)


def _refused(kind: type[Exception], work: Callable[[], Any], told: str) -> str:
    """See that a piece of work ends in an error of a kind whose message says what is wrong."""
    try:
        work()
    except kind as problem:
        assert told in str(problem), f"the message does not say {told!r}: {problem}"
        return f"{type(problem).__name__}: {str(problem)[:120]}"
    raise AssertionError("nothing was said")


def _saved(folder: Path, **arguments: Any) -> Path:
    strategy = make(train_epochs=1, **arguments)
    strategy.train(_data().train_stream, eval_streams=[])
    save_checkpoint(strategy, folder / "x.safetensors")
    return folder / "x.safetensors"


def _finite(strategy: Any) -> str:
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
    assert all(value == value for value in strategy.round_losses.values())
    return "trained, all weights and losses finite"


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


# ------------------------------------------------------------------ the disk


def _failing_disk(folder: Path, code: int, told: str) -> str:
    path = _saved(folder)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    strategy = make(train_epochs=1)
    strategy.train(_data().train_stream, eval_streams=[])
    with _replaced(os, "fsync", full):
        said = _refused(CheckpointError, lambda: save_checkpoint(strategy, path), told)
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
    with _replaced(os, "fsync", full):
        said = _refused(
            FeatureStoreError,
            lambda: with_source_features(_data(), encoder, folder),
            "disk is full",
        )
    with_source_features(_data(), encoder, folder)
    return said


def folder_is_a_file(folder: Path) -> str:
    """A file stands where the folder should be."""
    (folder / "x").write_text("here")
    strategy = make()
    return _refused(
        CheckpointError, lambda: save_checkpoint(strategy, folder / "x" / "y.safetensors"), "x"
    )


# ------------------------------------------------------------------ files


def missing(folder: Path) -> str:
    """No such file."""
    return _refused(CheckpointError, lambda: load_checkpoint(make(), folder / "none"), "none")


def truncated(folder: Path) -> str:
    """A file cut off anywhere."""
    path = _saved(folder)
    content = path.read_bytes()
    said = ""
    for end in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        said = _refused(CheckpointError, lambda: load_checkpoint(make(), path), "damaged")
    return said


def one_bit(folder: Path) -> str:
    """One bit changed, anywhere."""
    path = _saved(folder)
    content = path.read_bytes()
    said = ""
    for place in range(0, len(content), max(1, len(content) // 25)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        said = _refused(CheckpointError, lambda: load_checkpoint(make(), path), str(path))
    return said


def another_version(folder: Path) -> str:
    """A file of a later release."""
    path = _saved(folder)
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"9"'))
    return _refused(CheckpointError, lambda: load_checkpoint(make(), path), "version")


def another_network(folder: Path) -> str:
    """A checkpoint of a wider network."""
    path = _saved(folder)
    return _refused(
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
    said = _refused(
        CheckpointError, lambda: load_checkpoint(make(), folder / "x.safetensors"), "damaged"
    )
    assert not marker.exists(), "it was executed"
    return said


def bombs(folder: Path) -> str:
    """Small files that claim to be huge, or to be nested without end."""
    path = folder / "x.safetensors"
    about = {"format": "avalanche-cetl checkpoint", "version": "1", "sha256": "0" * 64}
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
        said = _refused(CheckpointError, lambda: load_checkpoint(make(), path), "damaged")
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    _refused(CheckpointError, lambda: load_checkpoint(make(), path), "damaged")
    return said


# ------------------------------------------------------------------ numbers


def _broken_images(value: float) -> Trial:
    def trial(_folder: Path) -> str:
        x, _ = digits(48)
        x[5, 0, 3, 3] = value
        return _refused(ValueError, lambda: make().train(_data(x).train_stream), "images")

    trial.__doc__ = f"{value} in an image."
    return trial


def broken_features(folder: Path) -> str:
    """A source network that gives NaN."""
    network = model()
    assert network.source is not None
    with torch.no_grad():
        for p in network.source.parameters():
            p.fill_(float("nan"))
    return _refused(
        ValueError,
        lambda: with_source_features(_data(), network.source, folder),
        "not finite",
    )


def broken_live_features(_folder: Path) -> str:
    """The same, with S run in training."""
    network = model()
    assert network.source is not None
    with torch.no_grad():
        for p in network.source.parameters():
            p.fill_(float("inf"))
    return _refused(ValueError, lambda: make(network).train(_data().train_stream), "")


class _BreaksGradients(SupervisedPlugin):
    """Puts NaN into one gradient of the last step."""

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Break one."""
        next(p for p in strategy.model.target.parameters()).grad.fill_(float("nan"))


def broken_gradients(folder: Path) -> str:
    """NaN in gradients, while the loss is finite: no checkpoint may hold what comes of it."""
    x, y = digits(16)
    one_batch = transfer_benchmark((x, y), digits(10, 200))
    plugins = [_BreaksGradients(), CheckpointPlugin(folder, ignore=["_BreaksGradients"])]
    strategy = make(train_epochs=1, plugins=plugins)
    said = _refused(ValueError, lambda: strategy.train(one_batch.train_stream), "NaN")
    assert not list(folder.glob("*.safetensors")), "a broken checkpoint was kept"
    return said


class _NaNLoss(nn.Module):
    """A criterion that gives NaN."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Give NaN."""
        return outputs.sum() * float("nan")


def broken_loss(_folder: Path) -> str:
    """A criterion that gives NaN."""
    return _refused(
        ValueError, lambda: make(criterion=_NaNLoss()).train(_data().train_stream), "L_c"
    )


# ------------------------------------------------------------------ data and networks


def _deadly(image: Tensor) -> Tensor:
    """End the process, if it is one that loads data."""
    if torch.utils.data.get_worker_info() is not None:
        os._exit(9)
    return image


def dying_worker(_folder: Path) -> str:
    """A process that loads data dies."""
    data = _data(train_transform=_deadly)
    return _refused(
        RuntimeError,
        lambda: make().train(data.train_stream, eval_streams=[], num_workers=1),
        "DataLoader worker",
    )


def no_labels(_folder: Path) -> str:
    """An experience without a labelled row."""
    experience = _data(labels_per_class=1).train_stream[0]
    hidden = [i for i, label in enumerate(experience.dataset.targets) if int(label) < 0]
    experience._dataset = experience.dataset.subset(hidden)
    return _refused(ValueError, lambda: make().train(experience), "no labelled row")


def ten_thousand_classes(folder: Path) -> str:
    """Very many classes."""
    torch.manual_seed(0)
    x, _ = digits(48)
    y = torch.randint(0, 10_000, (48,))
    y[0], y[1] = 9_999, 0
    data = transfer_benchmark((x, y), (x[:8], y[:8]))
    strategy = make(model(classes=10_000), train_epochs=1)
    strategy.train(data.train_stream)
    save_checkpoint(strategy, folder / "x.safetensors")
    load_checkpoint(make(model(classes=10_000), train_epochs=1), folder / "x.safetensors")
    return _finite(strategy)


def one_image_and_batchnorm(_folder: Path) -> str:
    """A last mini-batch of one image, in a network with BatchNorm."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip
    strategy = make(CoupledModel.build(model().source, network, SHAPE), train_mb_size=47)
    strategy.train(_data().train_stream)
    return _finite(strategy)


def nothing_shared(_folder: Path) -> str:
    """A decoder without a weight to train: the two tasks share none."""
    network = model()
    for parameter in network.decoder_parameters().values():
        parameter.requires_grad_(False)
    before = {n: p.clone() for n, p in network.decoder_parameters().items()}
    strategy = make(network)
    strategy.train(_data().train_stream)
    assert all(torch.equal(p, before[n]) for n, p in network.decoder_parameters().items())
    return _finite(strategy)


# ------------------------------------------------------------------ time and company


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

    with _replaced(time, "time", earlier):
        strategy = make(train_epochs=3, plugins=[Older(), CheckpointPlugin(folder)])
        strategy.train(_data().train_stream, eval_streams=[])
        again = make(train_epochs=3, plugins=[Older(), CheckpointPlugin(folder)])
        assert load_checkpoint(again, folder).rounds == 3
    return "the newest checkpoint is found by its number"


def one_cache_for_three(folder: Path) -> str:
    """Three at once want the same features in the same folder."""
    encoder = model().source
    assert encoder is not None
    found: list[Any] = [None] * 3

    def work(number: int) -> None:
        stream = with_source_features(_data(), encoder, folder, streams=["train"]).train_stream
        found[number] = torch.stack(list(stream[0].dataset.source_features))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one is not None and torch.equal(one, found[0]) for one in found)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1
    return "the same features for all, computed once"


TRIALS: dict[str, Trial] = {
    "disk full": disk_full,
    "read-only folder": read_only,
    "disk full in the feature store": disk_full_for_features,
    "a file where a folder should be": folder_is_a_file,
    "missing file": missing,
    "truncated files": truncated,
    "one bit flipped": one_bit,
    "another version": another_version,
    "another network": another_network,
    "a pickle in place of a checkpoint": a_pickle,
    "bombs": bombs,
    "NaN in an image": _broken_images(float("nan")),
    "infinity in an image": _broken_images(float("inf")),
    "NaN in stored features": broken_features,
    "infinity in live features": broken_live_features,
    "NaN in gradients": broken_gradients,
    "NaN in the loss": broken_loss,
    "a loader's worker dies": dying_worker,
    "no labelled row": no_labels,
    "10,000 classes": ten_thousand_classes,
    "one image and BatchNorm": one_image_and_batchnorm,
    "nothing shared": nothing_shared,
    "the clock goes backwards": clock_goes_back,
    "one cache folder for three": one_cache_for_three,
}
