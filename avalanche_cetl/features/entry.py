"""One entry of the feature store: shards, and a manifest with their checksums, in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from avalanche_cetl.common.files import file_digest, write_atomically
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.features import shards
from avalanche_cetl.features.extraction import Extraction, encoded, loaded
from avalanche_cetl.features.progress import progress_bar
from avalanche_cetl.features.shards import WRITE_PROBLEMS, shard_count
from avalanche_cetl.features.views import SeededView

logger = logging.getLogger(__name__)

#: Version of the files' layout; a part of every entry's key.
FORMAT = 1
_MANIFEST = "manifest.json"


class Entry:
    """One folder of the store: the features of one view by one encoder."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        content: str,
        rows: int,
        dtype: str,
        processes: Processes,
    ):
        self.rows, self.dtype, self.dim, self.processes = rows, dtype, encoder.dim, processes
        self.header = {
            "format": FORMAT,
            "encoder": encoder.fingerprint(),
            "content": content,
            "rows": rows,
            "dim": encoder.dim,
            "dtype": dtype,
            "shard_rows": shards.SHARD_ROWS,
        }
        text = json.dumps(self.header, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = folder / self.key[:32]
        self.paths = [
            self.folder / f"shard-{number:06}.safetensors" for number in range(shard_count(rows))
        ]

    def complete(self) -> bool:
        """Whether there is a manifest and every shard has the checksum that it lists."""
        own = range(self.processes.rank, len(self.paths), self.processes.size)
        listed = self._manifest()
        good = listed is not None and all(
            file_digest(self.paths[number]) == listed[number] for number in own
        )
        return all(self.processes.meet(good))

    def repair(self, encoder: Encoder, view: SeededView, extraction: Extraction) -> None:
        """Compute the shards that are missing or damaged, and write the manifest."""
        own = range(self.processes.rank, len(self.paths), self.processes.size)
        listed = self._manifest()
        missing = []
        for number in own:
            path = self.paths[number]
            if not path.exists():
                missing.append(number)
            elif not self._whole(number, None if listed is None else listed[number]):
                warnings.warn(
                    f"{path} is damaged, and is computed again.", RuntimeWarning, stacklevel=2
                )
                missing.append(number)
        self._extract(encoder, view, extraction, missing)
        digests = {number: file_digest(self.paths[number]) for number in own}
        merged: dict[int, str | None] = {}
        for part in self.processes.meet(digests):
            merged |= part
        if self.processes.rank == 0:
            files = [
                {"file": path.name, "sha256": merged[number]}
                for number, path in enumerate(self.paths)
            ]
            about = {**self.header, "key": self.key, "shards": files}
            about["made_by"] = f"{type(encoder).__name__}({encoder.extra_repr()})"
            write_atomically(
                self.folder / _MANIFEST,
                json.dumps(about, indent=1).encode() + b"\n",
                WRITE_PROBLEMS,
            )
        self.processes.meet()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other programs; rank 0 holds the lock for its group."""
        lock = None
        if self.processes.rank == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.folder / ".lock")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    logger.info("waiting for another process that computes %s", self.folder)
                    lock.acquire()
                for left in self.folder.glob(".*.tmp"):  # of a process that was killed
                    left.unlink(missing_ok=True)
            except OSError as problem:
                raise WRITE_PROBLEMS.explain(problem, self.folder) from problem
        try:
            self.processes.meet()
            yield
        finally:
            if lock is not None:
                lock.release()

    def _manifest(self) -> list[str] | None:
        """Return the checksums of all shards; None where there is no manifest of this entry."""
        try:
            found = json.loads((self.folder / _MANIFEST).read_bytes())
            same = all(found[name] == value for name, value in self.header.items())
            listed = [str(shard["sha256"]) for shard in found["shards"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return listed if same and len(listed) == len(self.paths) else None

    def _whole(self, number: int, digest: str | None) -> bool:
        """Whether a shard is what it should be, by the manifest, or by itself without one."""
        if digest is not None:
            return file_digest(self.paths[number]) == digest
        try:
            with safe_open(self.paths[number], framework="pt") as file:
                about = json.loads((file.metadata() or {})["cetl"])
                tensor = file.get_tensor("features")
            return about == self._about(number, tensor)
        except (SafetensorError, OSError, ValueError, KeyError):
            return False

    def _about(self, number: int, tensor: Tensor) -> dict[str, Any]:
        values = Fingerprint().tensor(tensor).hexdigest()
        return {"key": self.key, "shard": number, "values": values}

    def _extract(
        self, encoder: Encoder, view: SeededView, extraction: Extraction, numbers: Sequence[int]
    ) -> None:
        if not numbers:
            return
        home = next((t.device for t in encoder.state_dict().values()), torch.device("cpu"))
        device = torch.device(extraction.device) if extraction.device is not None else home
        total = sum(map(len, shards.batches(numbers, self.rows, extraction.batch_size)))
        bar = progress_bar(total, extraction.progress and self.processes.rank == 0)
        encoder.to(device)
        try:
            for number, batches in loaded(view, numbers, extraction):
                parts: list[Tensor] = []
                start = number * shards.SHARD_ROWS
                for images in batches:
                    parts.append(encoded(encoder, images.to(device), self.dtype, start))
                    start += len(images)
                    bar.update(len(images))
                tensor = torch.cat(parts)
                about = json.dumps(self._about(number, tensor), sort_keys=True)
                write_atomically(
                    self.paths[number],
                    save({"features": tensor}, metadata={"cetl": about}),
                    WRITE_PROBLEMS,
                )
        finally:
            encoder.to(home)
            bar.close()
