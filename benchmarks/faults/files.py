"""Damaged and forged files: checkpoints and feature stores, mutated at random."""

from __future__ import annotations

import copy
import hashlib
import json
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
        """Mutate and read; give what came of it, and let errors that are not ours through.

        :param kind: ``"damaged"``, or ``"forged"``: with a checksum that fits.
        """
        mutate = _damaged if kind == "damaged" else _forged
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


def _damaged(content: bytes, generator: random.Random) -> bytes:
    """Change bytes as disks and networks do."""
    found = bytearray(content)
    kind = generator.randrange(6)
    place = generator.randrange(len(found))
    if kind == 0:
        for _ in range(generator.randint(1, 8)):
            found[generator.randrange(len(found))] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del found[place:]
    elif kind == 2:
        found += generator.randbytes(generator.randint(1, 100))
    elif kind == 3:
        found[place : place + 64] = generator.randbytes(generator.randint(0, 64))
    elif kind == 4:
        found[:8] = generator.randrange(2**64).to_bytes(8, "little")
    else:
        found[place:place] = found[generator.randrange(len(found)) :][:200]
    return bytes(found)


def _forged(content: bytes, generator: random.Random) -> bytes:
    """Change the header or the plain data, with a checksum that fits."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = header["__metadata__"]
    if generator.random() < 0.75:
        state = json.loads(about["state"])
        for _ in range(generator.randint(1, 3)):
            state = _changed(state, generator)
        about["state"] = json.dumps(state)
    else:
        name = generator.choice([name for name in header if name != "__metadata__"])
        header[name] = _changed(header[name], generator)
    about["sha256"] = "0" * 64
    try:
        raw = json.dumps(header, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return content
    made = bytearray(len(raw).to_bytes(8, "little") + raw + content[8 + size :])
    start = made.index(b'"sha256":"' + b"0" * 64) + 10
    made[start : start + 64] = hashlib.sha256(made).hexdigest().encode()
    return bytes(made)


def _changed(value: Any, generator: random.Random) -> Any:
    """Change one node of plain data."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, item in pairs:
            places.append((node, key))
            if isinstance(item, dict | list):
                walk(item)

    walk(value)
    if not places:
        return _strange(generator)
    node, key = generator.choice(places)
    kind = generator.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[f"_{generator.randrange(99)}"] = node.pop(key)
    elif kind == 2:
        other, place = generator.choice(places)
        node[key] = copy.deepcopy(other[place]) if other is not node else None
    else:
        node[key] = _strange(generator)
    return value


def _strange(generator: random.Random) -> Any:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    return generator.choice(
        [
            None, True, -1, 0, 2**40, 1e308, -0.5, "", "x" * 1000, "../../etc/passwd", [], {},
            [[]], deep, {"~": "tensor", "name": "0"}, {"~": "tensor", "name": "none"},
            {"~": "numbers", "name": "1", "in": "list"}, {"~": "array", "name": "2", "dtype": "O"},
            {"~": "int", "hex": "f" * 5000}, {"~": "float", "is": "nan"}, {"~": "dict", "items": 3},
            {"~": "set", "items": [[], []]}, {"~": "deque", "items": [], "most": -5},
            {"~": "object"}, {"how": "object", "type": "Mean", "attributes": {"__class__": 1}},
            [2**70 % 2**63] * 40, "__reduce__",
        ]
    )  # fmt: skip


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
        change: Callable[[bytes, random.Random], bytes] = _damaged
        if path.suffix == ".json" and generator.random() < 0.5:
            change = _changed_json
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


def _changed_json(content: bytes, generator: random.Random) -> bytes:
    return json.dumps(_changed(json.loads(content), generator)).encode()


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def new_folder() -> Path:
    """Give a folder for the trial, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
