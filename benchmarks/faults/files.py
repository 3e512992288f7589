"""Checkpoints and feature stores that are mutated at random, and read."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avalanche_cetl import (
    CheckpointError,
    FeatureStoreError,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.faults.mutations import changed_json, damaged, forged
from benchmarks.faults.subject import digits, make, model

#: What reading any of the small files of this trial may add to the process, in bytes.
MEMORY = 256 * 2**20


def try_files(folder: Path, checkpoints: int, stores: int, seed: int = 0) -> dict[str, Any]:
    """Mutate files and read them; hypothesis draws the mutations.

    :param checkpoints: mutated checkpoints; half of them damaged, half forged: changed on
        purpose, with a checksum that fits.
    :param stores: mutated files of a feature store.
    :return: counts of what happened; ``"other errors"`` and ``"opened elsewhere"`` should be
        empty.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    watch = Watch()
    files = Checkpoints(folder, watch), Stores(folder, watch)
    kinds = [(kind, checkpoints // 2, files[0]) for kind in ("damaged", "forged")]
    found: dict[str, Any] = {"checkpoints": {}, "feature stores": {}}
    for kind, count, subject in [*kinds, ("damaged", stores, files[1])]:
        part = found["checkpoints" if subject is files[0] else "feature stores"]
        before = _peak()
        outcomes, others = _many(subject, kind, count, seed)
        subject.close()
        added = _peak() - before
        part["mutated"] = part.get("mutated", 0) + count
        part.update(outcomes)
        part["other errors"] = part.get("other errors", {}) | others
        part["memory added, MiB"] = max(part.get("memory added, MiB", 0), round(added / 2**20))
        part["memory stays below its bound"] = part["memory added, MiB"] * 2**20 < MEMORY
    found["checkpoints"]["bytes of the file"] = len(files[0].content)
    return {**found, "opened elsewhere": sorted(set(watch.opened))}


def _many(subject: Any, kind: str, count: int, seed: int) -> tuple[dict[str, int], dict[str, int]]:
    """Count outcomes and errors that are not ours over mutations drawn by hypothesis."""
    import hypothesis
    from hypothesis import strategies as st

    outcomes: Counter[str] = Counter()
    others: Counter[str] = Counter()

    def once(generator: random.Random) -> None:
        try:
            outcomes[subject.read(kind, generator)] += 1
        except Exception as problem:
            others[f"{kind}: {type(problem).__name__}: {str(problem)[:100]}"] += 1

    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    drawn = hypothesis.given(st.randoms(use_true_random=False))(once)
    settings(hypothesis.seed(seed)(drawn))()
    while outcomes.total() + others.total() < count:  # hypothesis may stop a little early
        once(random.Random(seed + outcomes.total()))
    return dict(outcomes), dict(others)


class Watch:
    """Notes files that are opened outside of a folder while it is on."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.folder: Path | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an event of the interpreter."""
        if event != "open" or self.folder is None:
            return
        name = arguments[0]
        path = Path(name).resolve() if isinstance(name, str) else None
        allowed = (self.folder, Path(sys.prefix), Path(sys.base_prefix), Path("/proc"))
        if path and not any(path.is_relative_to(one) for one in allowed) and path.suffix != ".py":
            self.opened.append(str(path))


# ------------------------------------------------------------------ checkpoints


class Checkpoints:
    """A checkpoint to mutate, and a strategy that reads it."""

    def __init__(self, folder: Path, watch: Watch):
        self.home, self.watch = folder / "checkpoints", watch
        strategy = make(model(width=0.02), train_epochs=1)
        data = transfer_benchmark(digits(32), digits(10, 200))
        strategy.train(data.train_stream, eval_streams=[])
        self.path = self.home / "x.safetensors"
        save_checkpoint(strategy, self.path)
        self.content = self.path.read_bytes()
        self.fresh = make(model(width=0.02), train_epochs=1)
        self.fresh.train(data.train_stream, eval_streams=[])

    def read(self, kind: str, generator: random.Random) -> str:
        """Mutate and read; return what came of it, and let errors that are not ours through.

        :param kind: ``"damaged"``, or ``"forged"``: with a checksum that fits.
        """
        mutate = damaged if kind == "damaged" else forged
        mutated = mutate(self.content, generator)
        self.path.write_bytes(mutated)
        self.watch.folder = self.home.resolve()
        try:
            load_checkpoint(self.fresh, self.path)
        except CheckpointError:
            return f"{kind}, refused"
        finally:
            self.watch.folder = None
        return f"{kind}, read" if mutated != self.content else f"{kind}, unchanged"

    def close(self) -> None:
        """Read the whole file: what was refused or read before left nothing behind."""
        self.path.write_bytes(self.content)
        load_checkpoint(self.fresh, self.path)


# ------------------------------------------------------------------ feature stores


class Stores:
    """A feature store of a few files to mutate."""

    def __init__(self, folder: Path, watch: Watch):
        self.home, self.watch = folder / "stores", watch
        self.data = transfer_benchmark(digits(12), digits(4, 200))
        encoder = model(width=0.02).source
        assert encoder is not None
        self.encoder = encoder
        self.want = self._features()
        files = [path for path in self.home.rglob("*") if path.is_file()]
        self.whole = {p: p.read_bytes() for p in sorted(files) if not p.name.endswith(".lock")}

    def _features(self) -> torch.Tensor:
        kept = with_source_features(self.data, self.encoder, self.home, streams=["train"])
        return torch.stack(list(kept.train_stream[0].dataset.source_features))

    def read(self, kind: str, generator: random.Random) -> str:
        """Mutate one file and ask for the features; let errors that are not ours through."""
        path = generator.choice(list(self.whole))
        change: Callable[[bytes, random.Random], bytes] = damaged
        if path.suffix == ".json" and generator.random() < 0.5:
            change = changed_json
        path.write_bytes(change(self.whole[path], generator))
        self.watch.folder = self.home.resolve()
        try:
            same = torch.equal(self._features(), self.want)
        except FeatureStoreError:
            return "refused"
        finally:
            self.watch.folder = None
            self.close()
        return "right features" if same else "WRONG FEATURES"

    def close(self) -> None:
        """Put all files back."""
        for name, content in self.whole.items():
            name.write_bytes(content)


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def new_folder() -> Path:
    """Make a folder for the trial, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
