"""The feature store: the features of a data set by a frozen network, computed once.

An entry is a folder of safetensors shards and a manifest with their checksums, named after
encoder and images by content. Shards are written one by one, each in one step, so a process
that is killed loses the shard at hand and nothing else; the manifest comes last.
"""

from __future__ import annotations

import os
from pathlib import Path

from avalanche_cetl.common.processes import Processes
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.features.entry import Entry
from avalanche_cetl.features.extraction import DTYPES, Extraction, loaded
from avalanche_cetl.features.shards import FeatureRows, shard_count
from avalanche_cetl.features.views import SeededView


def default_cache_dir() -> Path:
    """Return ``$CETL_CACHE``, or ``avalanche-cetl/features`` in the user's cache folder."""
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
    """Return the features of a view from the store; compute those that are missing.

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
        entry = Entry(Path(folder).expanduser(), encoder, content, len(view), dtype, processes)
        if not entry.complete():
            with entry.locked():
                entry.repair(encoder, view, extraction)
    except Exception as problem:
        processes.report(problem)
        raise
    return FeatureRows(entry.paths, len(view), encoder.dim)


def _content(view: SeededView, extraction: Extraction, processes: Processes) -> str:
    """Return a hash of the images as the encoder reads them: data, transforms and seeds in one."""
    own = range(processes.rank, shard_count(len(view)), processes.size)
    digests: dict[int, str] = {}
    for number, batches in loaded(view, own, extraction):
        digest = Fingerprint()
        for images in batches:
            for image in images:
                digest.tensor(image)
        digests[number] = digest.hexdigest()
    merged: dict[int, str] = {}
    for part in processes.meet(digests):
        merged |= part
    return Fingerprint().value([merged[i] for i in sorted(merged)]).hexdigest()
