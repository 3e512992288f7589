"""One entry of the feature store: shards, and a manifest with their checksums, in a folder."""

from __future__ import annotations

import hashlib
import json
import logging
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
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.encoders.base import Encoder, home_of
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.encoders.origin import Origin, same_features
from avalanche_cetl.features import shards
from avalanche_cetl.features.extraction import (
    DTYPES,
    Extraction,
    StoredType,
    encoded,
    loaded,
    progress_bar,
)
from avalanche_cetl.features.shards import (
    WRITE_PROBLEMS,
    FeatureRows,
    StoredRows,
    shard_count,
)
from avalanche_cetl.features.views import SeededView, changes, image_digest

logger = logging.getLogger(__name__)

#: Version of the files' layout; a part of every entry's key.
FORMAT = 1
_MANIFEST, _ORIGIN = "manifest.json", "origin.json"


class Entry:
    """One folder of the store: the features of one view by one encoder.

    Networks of one fingerprint that answer differently are numbered, from 0.
    """

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        dim: int,
        content: str,
        rows: int,
        dtype: StoredType,
        processes: Processes,
        number: int,
    ):
        self.rows, self.dtype, self.dim, self.processes = rows, dtype, dim, processes
        self.origin = origin
        self.header = {
            "format": FORMAT,
            "encoder": origin.fingerprint,
            "content": content,
            "rows": rows,
            "dim": dim,
            "dtype": dtype,
            "shard_rows": shards.SHARD_ROWS,
        }
        if number:
            self.header["number"] = number
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

    def is_of(self, encoder: Encoder, view: SeededView) -> bool:
        """Whether it is of this network, or nothing is stored yet: fingerprints do not see all."""
        same = True
        if self.processes.rank == 0:
            try:
                kept = json.loads((self.folder / _ORIGIN).read_bytes())
                same = Origin.from_state(kept).agrees(self.origin)
            except FileNotFoundError:
                same = self._gives(encoder, view)
            except (ValueError, TypeError):
                same = False
            except OSError as problem:  # whoever writes there says what is wrong
                logger.debug("%s: %s", self.folder, problem)
        return all(self.processes.meet(same))

    def _gives(self, encoder: Encoder, view: SeededView) -> bool:
        """Whether S gives what version 0.2 stored, which did not keep whose features they are.

        Where S refuses two images, its fingerprint counts.
        """
        if not self._whole(0, None):
            return not any(path.exists() for path in self.paths)
        kept, rows = FeatureRows(self.paths, self.rows, self.dim), self._rows(0)[:2]
        images = torch.stack([view.image(row) for row in rows]).to(home_of(encoder))
        try:
            found = encoded(encoder, images, self.dtype, rows)
        except Exception as problem:  # a file whose mini-batches have another size
            logger.debug("%s is not asked: %s", type(encoder).__name__, problem)
            return True
        return same_features(found, torch.stack([kept[row] for row in rows]))

    def repair(
        self,
        encoder: Encoder,
        view: SeededView,
        extraction: Extraction,
        digests: Sequence[bytes],
        stored: StoredRows,
    ) -> None:
        """Compute the shards that are missing or damaged, and write the manifest.

        :param encoder: S.
        :param view: of the images.
        :param extraction: how features are computed.
        :param digests: of the images, in order of their rows.
        :param stored: rows for which S does not run again.
        """
        own = range(self.processes.rank, len(self.paths), self.processes.size)
        listed = self._manifest()
        if self.processes.rank == 0 and not (self.folder / _ORIGIN).exists():
            asked = json.dumps(self.origin.state_dict()).encode()
            write_atomically(self.folder / _ORIGIN, asked, WRITE_PROBLEMS)
        missing = []
        for number in own:
            path = self.paths[number]
            if not path.exists():
                missing.append(number)
            elif not self._whole(number, None if listed is None else listed[number]):
                warn_caller(f"{path} is damaged, and is computed again.", RuntimeWarning)
                missing.append(number)
        left = []
        for number in missing:
            known = self._known(number, digests, stored)
            if len(known) == len(self._rows(number)):
                self._write(number, torch.stack(list(known.values())))
            else:
                left.append(number)
        self._extract(encoder, view, extraction, left, digests, stored)
        checksums = {number: file_digest(self.paths[number]) for number in own}
        merged: dict[int, str | None] = {}
        for part in self.processes.meet(checksums):
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
            result: bool = about == self._about(number, tensor)
            return result
        except (SafetensorError, OSError, ValueError, KeyError):
            return False

    def _about(self, number: int, tensor: Tensor) -> dict[str, Any]:
        values = Fingerprint().tensor(tensor).hexdigest()
        return {"key": self.key, "shard": number, "values": values}

    def _rows(self, number: int) -> range:
        """Return the rows of a shard."""
        start = number * shards.SHARD_ROWS
        return range(start, min(self.rows, start + shards.SHARD_ROWS))

    def _known(
        self, number: int, digests: Sequence[bytes], stored: StoredRows
    ) -> dict[int, Tensor]:
        """Return the features of the rows of a shard that are stored already, in their order."""
        found = ((row, stored.find(digests[row])) for row in self._rows(number))
        return {row: features for row, features in found if features is not None}

    def _write(self, number: int, features: Tensor) -> None:
        about = json.dumps(self._about(number, features), sort_keys=True)
        content = save({"features": features}, metadata={"cetl": about})
        write_atomically(self.paths[number], content, WRITE_PROBLEMS)

    def _extract(
        self,
        encoder: Encoder,
        view: SeededView,
        extraction: Extraction,
        numbers: Sequence[int],
        digests: Sequence[bytes],
        stored: StoredRows,
    ) -> None:
        if not numbers:
            return
        home = home_of(encoder)
        device = torch.device(extraction.device) if extraction.device is not None else home
        total = sum(map(len, shards.batches(numbers, self.rows, extraction.batch_size)))
        bar = progress_bar(total, extraction.progress and self.processes.rank == 0)
        encoder.to(device)
        try:
            for number, batches in loaded(view, numbers, extraction):
                first, known = self._rows(number).start, self._known(number, digests, stored)
                features = torch.empty(len(self._rows(number)), self.dim, dtype=DTYPES[self.dtype])
                for row, found in known.items():
                    features[row - first] = found
                start = first
                for images in batches:
                    for row, image in enumerate(images if view.draws else (), start):
                        if image_digest(image) != digests[row]:
                            raise changes(row)
                    new = [row for row in range(start, start + len(images)) if row not in known]
                    if new:
                        several = [row - start for row in new]
                        part = images if len(new) == len(images) else images[several]
                        made = encoded(encoder, part.to(device), self.dtype, new)
                        features[[row - first for row in new]] = made
                    start += len(images)
                    bar.update(len(images))
                self._write(number, features)
        finally:
            encoder.to(home)
            bar.close()
