"""The feature store: the features of a data set by a frozen network, computed once.

An entry is a folder of safetensors shards and a manifest with their checksums, named after
encoder and images by content; encoders that only their answers tell apart have entries of their
own. Shards are written one by one, each in one step, so a process that is killed loses the shard at
hand and nothing else; the manifest comes last.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from avalanche_cetl.common.processes import Processes
from avalanche_cetl.common.validation import check_choice
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.encoders.origin import Origin
from avalanche_cetl.features.entry import Entry
from avalanche_cetl.features.extraction import DTYPES, Extraction, StoredType, loaded
from avalanche_cetl.features.shards import FeatureRows, StoredRows, shard_count
from avalanche_cetl.features.views import SeededView, image_digest


def default_cache_dir() -> Path:
    """Return ``$CETL_CACHE``, or ``avalanche-cetl/features`` in the user's cache folder.

    An empty variable is none.
    """
    if folder := os.environ.get("CETL_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "avalanche-cetl" / "features"


def stored_features(
    folder: str | Path,
    encoder: Encoder,
    view: SeededView,
    dtype: StoredType,
    extraction: Extraction,
    processes: Processes,
    stored: StoredRows | None = None,
    origin: Origin | None = None,
) -> FeatureRows:
    """Return the features of a view from the store; compute those that are missing.

    :param folder: of all entries.
    :param encoder: S.
    :param view: of the images.
    :param dtype: ``"float16"`` or ``"float32"``, as stored.
    :param extraction: how they are computed.
    :param processes: that share the work; all see the same folder, and call this together.
    :param stored: rows of this encoder and dtype for which S does not run again; the view's are
        added. None: there are none.
    :param origin: of the encoder; None: it is asked for.
    :raises ValueError: for an unknown dtype, no rows, images of mixed shape, or features that
        are not finite.
    :raises FeatureStoreError: when the folder cannot be written, or the disk is full.
    """
    check_choice("dtype", dtype, DTYPES)
    stored = StoredRows() if stored is None else stored
    try:
        view.check_repeats()
        content, digests = _content(view, extraction, processes)
        origin = Origin.of(encoder, *view.kind()) if origin is None else origin
        about = encoder.dim, content, len(view), dtype, processes
        for number in count():
            entry = Entry(Path(folder).expanduser(), origin, *about, number)
            complete = entry.complete()  # before it is asked whose it is: it may change
            if not entry.is_of(encoder, view):
                continue
            if complete:
                break
            with entry.locked():  # another network may have come first
                if entry.is_of(encoder, view):
                    entry.repair(encoder, view, extraction, digests, stored)
                    break
    except Exception as problem:
        processes.report(problem)
        raise
    rows = FeatureRows(entry.paths, len(view), encoder.dim)
    stored.add(digests, rows)
    return rows


def _content(
    view: SeededView, extraction: Extraction, processes: Processes
) -> tuple[str, list[bytes]]:
    """Return a hash of the images as the encoder reads them, and one of each image.

    Data, transforms and seeds are in one.
    """
    own = range(processes.rank, shard_count(len(view)), processes.size)
    digests: dict[int, tuple[str, list[bytes]]] = {}
    for number, batches in loaded(view, own, extraction):
        digest, of_rows = Fingerprint(), []
        for images in batches:
            for image in images:
                digest.tensor(image)
                of_rows.append(image_digest(image))
        digests[number] = digest.hexdigest(), of_rows
    merged: dict[int, tuple[str, list[bytes]]] = {}
    for part in processes.meet(digests):
        merged |= part
    in_order = [merged[number] for number in sorted(merged)]
    content = Fingerprint().value([of_shard for of_shard, _ in in_order]).hexdigest()
    return content, [digest for _, of_rows in in_order for digest in of_rows]
