"""Random changes of files: damage, as disks and networks do it, and forgery."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from typing import Any


def damaged(content: bytes, generator: random.Random) -> bytes:
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


def forged(content: bytes, generator: random.Random) -> bytes:
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


def changed_json(content: bytes, generator: random.Random) -> bytes:
    """Change one node of a JSON file."""
    return json.dumps(_changed(json.loads(content), generator)).encode()
