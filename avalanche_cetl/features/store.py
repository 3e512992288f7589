"""The feature store: what a frozen network says of a data set, computed once.

An entry is a folder of safetensors shards and a manifest with their checksums, named after
encoder and images by content. Shards are written one by one, each in one step, so a process
that is killed loses the shard at hand and nothing else; the manifest comes last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from avalanche_cetl.common.files import file_digest, write_atomically
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.features import shards
from avalanche_cetl.features.shards import WRITE_PROBLEMS, FeatureRows, shard_count
from avalanche_cetl.features.views import Images, SeededView

logger = logging.getLogger(__name__)

FORMAT = 1
DTYPES = {"float16": torch.float16, "float32": torch.float32}
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Extraction:
    """How features are computed.

    :ivar batch_size: images of one forward pass.
    :ivar num_workers: processes that load images.
    :ivar device: where the encoder runs; None for where it is.
    :ivar progress: show a progress bar, where there is a terminal.
    :raises ValueError: for values out of range.
    """

    batch_size: int = 64
    num_workers: int = 0
    device: str | torch.device | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"batch_size={self.batch_size} has to be >= 1, num_workers={self.num_workers} >= 0."
            )


def default_cache_dir() -> Path:
    """Give ``$CETL_CACHE``, or ``avalanche-cetl/features`` in the user's cache folder."""
    if "CETL_CACHE" in os.environ:
        return Path(os.environ["CETL_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "avalanche-cetl" / "features"


def stored_features(
    folder: str | Path,
    encoder: Encoder,
    view: SeededView,
    dtype: str,
    extraction: Extraction,
    processes: Processes,
) -> FeatureRows:
    """Give the features of a view out of the store, computing those that are not there.

    :param folder: of all entries.
    :param dtype: ``"float16"`` or ``"float32"``, as stored.
    :param processes: that share the work; all see the same folder, and call this together.
    :raises ValueError: for an unknown dtype, no rows, images of mixed shape, or features that
        are not finite.
    :raises FeatureStoreError: when the folder cannot be written, or the disk is full.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known. Allowed: {sorted(DTYPES)}.")
    try:
        view.check_repeats()
        content = _content(view, extraction, processes)
        entry = _Entry(Path(folder).expanduser(), encoder, content, len(view), dtype, processes)
        if not entry.complete():
            with entry.locked():
                entry.repair(encoder, view, extraction)
    except Exception as problem:
        processes.report(problem)
        raise
    return FeatureRows(entry.paths, len(view), encoder.dim)


def _content(view: SeededView, extraction: Extraction, processes: Processes) -> str:
    """Hash the images as the encoder sees them: data, transforms and seeds in one."""
    own = range(processes.rank, shard_count(len(view)), processes.size)
    digests: dict[int, str] = {}
    for number, batches in _loaded(view, own, extraction):
        digest = Fingerprint()
        for images in batches:
            for image in images:
                digest.tensor(image)
        digests[number] = digest.hexdigest()
    merged: dict[int, str] = {}
    for part in processes.meet(digests):
        merged |= part
    return Fingerprint().value([merged[i] for i in sorted(merged)]).hexdigest()


class _Entry:
    """One folder: the features of one view by one encoder."""

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
        """Whether a manifest is there and every shard is as it says."""
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
        """Keep other programs out; rank 0 holds the lock for its group."""
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
        """Checksums of all shards, or None where there is no manifest of this entry."""
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
        quiet = None if extraction.progress and self.processes.rank == 0 else True
        bar = tqdm(total=total, unit="img", desc="source features", disable=quiet)
        encoder.to(device)
        try:
            for number, batches in _loaded(view, numbers, extraction):
                parts: list[Tensor] = []
                start = number * shards.SHARD_ROWS
                for images in batches:
                    parts.append(self._encoded(encoder, images.to(device), start))
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

    def _encoded(self, encoder: Encoder, images: Tensor, start: int) -> Tensor:
        found = encoder(images).float().cpu()
        if found.shape != (len(images), self.dim):
            raise ValueError(
                f"the encoder gave {tuple(found.shape)} for {len(images)} images; expected "
                f"({len(images)}, {self.dim})."
            )
        stored = found.to(DTYPES[self.dtype])
        finite = torch.isfinite(stored).all(1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            over = torch.isfinite(found[row]).all()
            remedy = "too large for float16: store them with dtype='float32'"
            raise ValueError(
                f"the features of row {start + row} are "
                f"{remedy if over else 'not finite: clean the image or the network'}."
            )
        return stored


def _loaded(
    view: SeededView, numbers: Sequence[int], extraction: Extraction
) -> Iterator[tuple[int, Iterator[Tensor]]]:
    """Load the images of some shards; give each one's number and batches."""
    batches = shards.batches(numbers, len(view), extraction.batch_size)
    loader = DataLoader(
        Images(view),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=extraction.num_workers,
        collate_fn=_stack,
        generator=torch.Generator(),  # leaves the global one alone
    )
    pairs = zip((rows.start // shards.SHARD_ROWS for rows in batches), loader, strict=True)
    for number, group in groupby(pairs, key=itemgetter(0)):
        yield number, (images for _, images in group)


def _stack(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise ValueError(
            f"the images have several shapes, {sorted(shapes)}; resize them in the benchmark's "
            "transforms."
        )
    return torch.stack(images)
