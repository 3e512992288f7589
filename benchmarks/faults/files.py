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
    """Mutate files and read them.

    :param checkpoints: mutated checkpoints; half of them damaged, half forged: changed on
        purpose, with a checksum that fits.
    :param stores: mutated files of a feature store.
    :return: counts of what happened; ``"other errors"`` and ``"opened elsewhere"`` should be
        empty.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    generator = random.Random(seed)
    opened: list[str] = []
    watch = _Watch(opened)
    found = {
        "checkpoints": _checkpoints(folder, checkpoints, generator, watch),
        "feature stores": _stores(folder, stores, generator, watch),
    }
    return {**found, "opened elsewhere": sorted(set(opened))}


class _Watch:
    """Notes files that are opened outside of a folder while it is on."""

    def __init__(self, opened: list[str]):
        self.opened = opened
        self.folder: Path | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or self.folder is None:
            return
        name = arguments[0]
        path = Path(name).resolve() if isinstance(name, str) else None
        allowed = (self.folder, Path(sys.prefix), Path(sys.base_prefix), Path("/proc"))
        if path and not any(path.is_relative_to(one) for one in allowed) and path.suffix != ".py":
            self.opened.append(str(path))


# ------------------------------------------------------------------ checkpoints


def _checkpoints(
    folder: Path, count: int, generator: random.Random, watch: _Watch
) -> dict[str, Any]:
    home = folder / "checkpoints"
    strategy = make(model(width=0.02), train_epochs=1)
    data = transfer_benchmark(digits(32), digits(10, 200))
    strategy.train(data.train_stream, eval_streams=[])
    path = home / "x.safetensors"
    save_checkpoint(strategy, path)
    content = path.read_bytes()
    fresh = make(model(width=0.02), train_epochs=1)
    fresh.train(data.train_stream, eval_streams=[])
    outcomes: Counter[str] = Counter()
    other: Counter[str] = Counter()
    before = _peak()
    watch.folder = home.resolve()
    for number in range(count):
        damage = number % 2 == 0
        mutated = _damaged(content, generator) if damage else _forged(content, generator)
        path.write_bytes(mutated)
        kind = "damaged" if damage else "forged"
        try:
            load_checkpoint(fresh, path)
            outcomes[f"{kind}, read" if mutated != content else f"{kind}, unchanged"] += 1
        except CheckpointError:
            outcomes[f"{kind}, refused"] += 1
        except Exception as problem:
            other[f"{kind}: {type(problem).__name__}: {str(problem)[:100]}"] += 1
    watch.folder = None
    path.write_bytes(content)
    load_checkpoint(fresh, path)  # what was refused or read before left nothing behind
    return {
        "mutated": count,
        **dict(outcomes),
        "other errors": dict(other),
        "bytes of the file": len(content),
        "memory added, MiB": round((_peak() - before) / 2**20),
        "memory stays below its bound": _peak() - before < MEMORY,
    }


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


def _stores(folder: Path, count: int, generator: random.Random, watch: _Watch) -> dict[str, Any]:
    home = folder / "stores"
    data = transfer_benchmark(digits(12), digits(4, 200))
    encoder = model(width=0.02).source
    assert encoder is not None

    def features() -> torch.Tensor:
        rows = with_source_features(data, encoder, home, streams=["train"]).train_stream[0].dataset
        return torch.stack(list(rows.source_features))

    want = features()
    files = [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    files = [path for path in files if path.name != ".lock"]
    whole = {path: path.read_bytes() for path in files}
    outcomes: Counter[str] = Counter()
    other: Counter[str] = Counter()
    before = _peak()
    for _ in range(count):
        path = generator.choice(files)
        change: Callable[[bytes, random.Random], bytes] = _damaged
        if path.suffix == ".json" and generator.random() < 0.5:
            change = _changed_json
        mutated = change(whole[path], generator)
        path.write_bytes(mutated)
        watch.folder = home.resolve()
        try:
            same = torch.equal(features(), want)
            outcomes["right features" if same else "WRONG FEATURES"] += 1
        except FeatureStoreError:
            outcomes["refused"] += 1
        except Exception as problem:
            other[f"{type(problem).__name__}: {str(problem)[:100]}"] += 1
        watch.folder = None
        for name, content in whole.items():
            name.write_bytes(content)
    return {
        "mutated": count,
        **dict(outcomes),
        "other errors": dict(other),
        "memory added, MiB": round((_peak() - before) / 2**20),
        "memory stays below its bound": _peak() - before < MEMORY,
    }


def _changed_json(content: bytes, generator: random.Random) -> bytes:
    return json.dumps(_changed(json.loads(content), generator)).encode()


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def new_folder() -> Path:
    """Give a folder for the trial, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
