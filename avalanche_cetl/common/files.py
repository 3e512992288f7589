"""Files that are written whole or not at all, and what a failed write means."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WriteProblems:
    """How a kind of file explains an :class:`OSError` to the user.

    :ivar error: the class of the error that is raised instead.
    :ivar full: what is kept when the disk is full, and what to do.
    :ivar read_only: what to do when the folder may not be written; empty: nothing to say.
    """

    error: type[Exception]
    full: str
    read_only: str = ""

    def explain(self, problem: OSError, path: Path) -> Exception:
        """Return the error that says what a failed write means, and what to do."""
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return self.error(f"the disk is full: {path} could not be written. {self.full}")
        if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            told = f"{path} may not be written: the folder is read-only. {self.read_only}"
            return self.error(told.rstrip())
        return self.error(f"{path} could not be written: {problem}")


def write_atomically(path: Path, content: bytes | bytearray, problems: WriteProblems) -> None:
    """Write a file in one step: it is there whole, or what was there before stays.

    Missing folders are made. The file's new name lasts through a loss of power, where the system
    can do so.

    :param path: of the file.
    :param content: its bytes.
    :param problems: what an :class:`OSError` is turned into.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _settle(path.parent)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise problems.explain(problem, path) from problem


def _settle(folder: Path) -> None:
    """Write a folder's new names to the disk, where the system can do so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
