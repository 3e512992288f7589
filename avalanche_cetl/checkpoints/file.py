"""One checkpoint, one file: tensors and plain data, written in one step, checked when read.

The file is a safetensors file. Its metadata hold the format, its version, the plain data as JSON
and a SHA-256 over every byte of the file (its own 64 digits read as zeros), so a change of any
bit is found. Nothing in it is executed, and it names no other file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.common.files import WriteProblems, write_atomically

FORMAT = "avalanche-cetl checkpoint"
VERSION = 2
MOST_HEADER_BYTES = 16 * 2**20  #: of the header, which holds the plain data

_NO_DIGEST = b"0" * 64

WRITE_PROBLEMS = WriteProblems(
    CheckpointError,
    full="What was there before is whole; make room, or keep fewer checkpoints.",
)


def write_checkpoint_file(path: Path, tensors: dict[str, Tensor], state: Any) -> None:
    """Write a checkpoint whole, or leave what was there.

    :param path: of the file.
    :param tensors: by name.
    :param state: plain data for JSON.
    :raises CheckpointError: when it cannot be written, or the plain data are too large.
    """
    text = json.dumps(state, allow_nan=False)
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        "state": text,
        "sha256": _NO_DIGEST.decode(),
    }
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    content = bytearray(save(whole, metadata=about))
    header = _header_size(content, path)
    if header > MOST_HEADER_BYTES:
        raise CheckpointError(
            f"the plain data of the checkpoint fill {header} bytes, more than {MOST_HEADER_BYTES}: "
            "a metric or a plugin keeps too much; give it state_dict() with tensors."
        )
    start = _digest_position(content, header, _NO_DIGEST.decode(), path)
    digest = hashlib.sha256(content).hexdigest().encode()
    content[start : start + 64] = digest
    write_atomically(path, content, WRITE_PROBLEMS)


def read_checkpoint_file(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read a checkpoint, and check it.

    Memory stays below four times the size of the file, and 80 times that of its header, which
    is at most 16 MiB.

    :return: tensors on the CPU, and plain data.
    :raises CheckpointError: when it is not there, damaged, of another version, or no checkpoint.
    """
    try:
        content = bytearray(path.read_bytes())
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from problem
    header = _header_size(content, path)
    about = _metadata(content, header, path)
    if about["version"] != str(VERSION):
        raise CheckpointError(
            f"{path} has version {about['version'][:20]!r} of the format, and this release reads "
            f"version {VERSION}: load it with the release that wrote it."
        )
    start = _digest_position(content, header, about["sha256"], path)
    content[start : start + 64] = _NO_DIGEST
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise _damaged(path, "its checksum does not fit")
    try:
        state = json.loads(about["state"])
        tensors = load(bytes(content))
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as why:
        raise _damaged(path, f"it cannot be parsed ({type(why).__name__})") from why
    return tensors, state


def _header_size(content: bytes | bytearray, path: Path) -> int:
    """Bytes of the length field and the header."""
    size = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 8 < size <= len(content):
        raise _damaged(path, "it is cut off, or no checkpoint")
    return size


def _metadata(content: bytearray, header: int, path: Path) -> dict[str, str]:
    if header > MOST_HEADER_BYTES:
        raise _damaged(path, "its header is too large")
    try:
        about = json.loads(content[8:header])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as why:
        raise _damaged(path, "its header is no header of a checkpoint") from why
    names = ("format", "version", "state", "sha256")
    if not isinstance(about, dict) or not all(isinstance(about.get(name), str) for name in names):
        raise _damaged(path, "its header is no header of a checkpoint")
    if about["format"] != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of avalanche-cetl.")
    return about


def _digest_position(content: bytearray, header: int, digest: str, path: Path) -> int:
    if len(digest) != 64 or not digest.isascii():
        raise _damaged(path, "it has no checksum")
    entry = b'"sha256":"' + digest.encode() + b'"'
    if content.count(entry, 8, header) != 1:
        raise _damaged(path, "its checksum is not where it belongs")
    return content.index(entry, 8, header) + len(b'"sha256":"')


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {how}. Take an older checkpoint.")
