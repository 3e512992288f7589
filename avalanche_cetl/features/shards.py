"""Shards: pieces of a feature matrix in files that are whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avalanche_cetl.common.described import Described
from avalanche_cetl.common.files import WriteProblems

#: Rows of a shard: what a killed process loses at most.
SHARD_ROWS = 1024


class FeatureStoreError(RuntimeError):
    """The store cannot be written or read; the message says where, and what to do."""


WRITE_PROBLEMS = WriteProblems(
    FeatureStoreError,
    full="Whole shards are kept; make room, or give another cache_dir, and start again.",
    read_only="Give a cache_dir of your own.",
)


class FeatureRows(Sequence[Tensor], Described):
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
        """Return the features of a row, ``(dim,)``, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.rows))]
        index = int(index)
        if not -self.rows <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        shard, row = divmod(index % self.rows, SHARD_ROWS)
        return self._shard(shard)[row]

    def tensor(self) -> Tensor:
        """Return all rows, ``(N, dim)``, in memory."""
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


def shard_count(rows: int) -> int:
    """Return the number of shards that hold a number of rows."""
    return -(-rows // SHARD_ROWS)


def batches(shards: Sequence[int], rows: int, size: int) -> list[range]:
    """Return the rows of every batch; no batch reaches over the end of a shard."""
    found = []
    for number in shards:
        end = min(rows, (number + 1) * SHARD_ROWS)
        for start in range(number * SHARD_ROWS, end, size):
            found.append(range(start, min(end, start + size)))
    return found


class StoredRows:
    """The images whose features a call has stored, so that S runs once for each of them.

    The streams of a benchmark share rows: those with a label are among the others, and the source's
    rows are in every experience of an adaptation. All features are of one encoder and one type.
    """

    def __init__(self) -> None:
        self._entries: list[FeatureRows] = []
        self._places: dict[bytes, tuple[int, int]] = {}

    def add(self, digests: Sequence[bytes], rows: FeatureRows) -> None:
        """Add an entry.

        :param digests: of its images, in order of their rows.
        :param rows: their features.
        """
        entry = len(self._entries)
        self._entries.append(rows)
        for row, digest in enumerate(digests):
            self._places.setdefault(digest, (entry, row))

    def find(self, digest: bytes) -> Tensor | None:
        """Return the features ``(dim,)`` of an image; None where they are not stored."""
        if digest not in self._places:
            return None
        entry, row = self._places[digest]
        features: Tensor = self._entries[entry][row]
        return features
