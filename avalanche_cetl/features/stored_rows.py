"""Features that are in the store already, by the content of their image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from avalanche_cetl.features.shards import FeatureRows


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
