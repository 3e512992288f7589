"""The feature store: what a frozen network says of a data set, computed once.

An entry is a folder of safetensors shards and a manifest with their checksums, named after
encoder and images by content. Shards are written one by one, each in one step, so a process
that is killed loses the shard at hand and nothing else; the manifest comes last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.encoders.views import Images, SeededView
from avalanche_cetl.information.processes import Processes

logger = logging.getLogger(__name__)

FORMAT = 1
#: Rows of a shard: what a killed process loses at most.
SHARD_ROWS = 1024
DTYPES = {"float16": torch.float16, "float32": torch.float32}
_MANIFEST = "manifest.json"


class FeatureStoreError(RuntimeError):
    """The store cannot be written or read; says where, and what to do."""


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


class FeatureRows(Sequence[Tensor]):
    """Stored features, one row an image, read from memory-mapped shards.

    :param paths: of the shards, in order.
    :param rows: how many there are.
    :ivar dim: number of features.
    """

    def __init__(self, paths: Sequence[Path], rows: int, dim: int):
        self.paths, self.rows, self.dim = list(paths), rows, dim
        self._open: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: Any) -> Any:
        """Give the features of a row, ``(dim,)``, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.rows))]
        index = int(index)
        if not -self.rows <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        shard, row = divmod(index % self.rows, SHARD_ROWS)
        return self._shard(shard)[row]

    def tensor(self) -> Tensor:
        """Give all rows, ``(N, dim)``, in memory."""
        return torch.cat([self._shard(i) for i in range(len(self.paths))])

    def _shard(self, number: int) -> Tensor:
        if number not in self._open:
            path = self.paths[number]
            try:
                with safe_open(path, framework="pt") as file:
                    self._open[number] = file.get_tensor("features")
            except (SafetensorError, OSError) as problem:
                raise FeatureStoreError(
                    f"{path} cannot be read any more: {problem}. Make the benchmark again with "
                    "with_source_features; it computes what is missing."
                ) from problem
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a worker process maps the files itself


def default_cache_dir() -> Path:
    """Give ``$CETL_CACHE``, or ``avalanche-cetl/features`` in the user's cache folder."""
    if "CETL_CACHE" in os.environ:
        return Path(os.environ["CETL_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "avalanche-cetl" / "features"


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
        entry = _Entry(Path(folder), encoder, content, len(view), dtype, processes)
        if not entry.complete():
            with entry.locked():
                entry.repair(encoder, view, extraction)
    except Exception as problem:
        processes.report(problem)
        raise
    return FeatureRows(entry.paths, len(view), encoder.dim)


def _content(view: SeededView, extraction: Extraction, processes: Processes) -> str:
    """Hash the images as the encoder sees them: data, transforms and seeds in one."""
    shards = range(processes.rank, _shard_count(len(view)), processes.size)
    digests: dict[int, str] = {}
    batches = _batches(shards, len(view), SHARD_ROWS)
    for shard, (images,) in zip(shards, _grouped(view, batches, 1, extraction), strict=True):
        digests[shard] = Fingerprint().tensor(images).hexdigest()
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
            "shard_rows": SHARD_ROWS,
        }
        text = json.dumps(self.header, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.folder = folder / self.key[:32]
        self.paths = [
            self.folder / f"shard-{number:06}.safetensors" for number in range(_shard_count(rows))
        ]

    def complete(self) -> bool:
        """Whether a manifest is there and every shard is as it says."""
        own = range(self.processes.rank, len(self.paths), self.processes.size)
        listed = self._manifest()
        good = listed is not None and all(
            _file_digest(self.paths[number]) == listed[number] for number in own
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
        digests = {number: _file_digest(self.paths[number]) for number in own}
        merged: dict[int, str | None] = {}
        for part in self.processes.meet(digests):
            merged |= part
        if self.processes.rank == 0:
            shards = [
                {"file": path.name, "sha256": merged[number]}
                for number, path in enumerate(self.paths)
            ]
            about = {**self.header, "key": self.key, "shards": shards}
            about["made_by"] = f"{type(encoder).__name__}({encoder.extra_repr()})"
            write_atomically(self.folder / _MANIFEST, json.dumps(about, indent=1).encode() + b"\n")
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
                raise _explained(problem, self.folder) from problem
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
            return _file_digest(self.paths[number]) == digest
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
        self, encoder: Encoder, view: SeededView, extraction: Extraction, shards: Sequence[int]
    ) -> None:
        if not shards:
            return
        home = next((t.device for t in encoder.state_dict().values()), torch.device("cpu"))
        device = torch.device(extraction.device) if extraction.device is not None else home
        batches = _batches(shards, self.rows, extraction.batch_size)
        quiet = None if extraction.progress and self.processes.rank == 0 else True
        bar = tqdm(
            total=sum(len(rows) for rows in batches),
            unit="img",
            desc="source features",
            disable=quiet,
        )
        per_shard = -(-SHARD_ROWS // extraction.batch_size)
        grouped = _grouped(view, batches, per_shard, extraction)
        encoder.to(device)
        try:
            for number, group in zip(shards, grouped, strict=True):
                parts: list[Tensor] = []
                for images in group:
                    start = number * SHARD_ROWS + sum(map(len, parts))
                    parts.append(self._encoded(encoder, images.to(device), start))
                    bar.update(len(images))
                tensor = torch.cat(parts)
                about = json.dumps(self._about(number, tensor), sort_keys=True)
                write_atomically(
                    self.paths[number], save({"features": tensor}, metadata={"cetl": about})
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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one step: it is there whole, or not at all.

    :raises FeatureStoreError: when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise _explained(problem, path) from problem


def _explained(problem: OSError, path: Path) -> FeatureStoreError:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return FeatureStoreError(
            f"the disk is full: {path} could not be written. Whole shards are kept; make room, "
            "or give another cache_dir, and start again."
        )
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FeatureStoreError(
            f"{path} may not be written: the folder is read-only. Give a cache_dir of your own."
        )
    return FeatureStoreError(f"{path} could not be written: {problem}")


def _shard_count(rows: int) -> int:
    return -(-rows // SHARD_ROWS)


def _batches(shards: Sequence[int], rows: int, size: int) -> list[range]:
    """Rows of every batch; none reaches over the end of a shard."""
    batches = []
    for number in shards:
        end = min(rows, (number + 1) * SHARD_ROWS)
        for start in range(number * SHARD_ROWS, end, size):
            batches.append(range(start, min(end, start + size)))
    return batches


def _grouped(
    view: SeededView, batches: Sequence[range], count: int, extraction: Extraction
) -> Iterator[list[Tensor]]:
    """Load batches of images; give so many at a time, fewer at the end of the last shard."""
    loader = DataLoader(
        Images(view),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=extraction.num_workers,
        collate_fn=_stack,
        generator=torch.Generator(),  # leaves the global one alone
    )
    group: list[Tensor] = []
    for rows, images in zip(batches, loader, strict=True):
        group.append(images)
        if len(group) == count or rows.stop % SHARD_ROWS == 0 or rows.stop == len(view):
            yield group
            group = []


def _stack(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise ValueError(
            f"the images have several shapes, {sorted(shapes)}; resize them in the benchmark's "
            "transforms."
        )
    return torch.stack(images)


def _file_digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
