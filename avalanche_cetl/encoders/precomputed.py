"""Features made elsewhere, row by row of a data set, in place of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.fingerprint import Fingerprint

Features = Any


class PrecomputedEncoder(Encoder):
    """Source features that were computed elsewhere, by any program.

    It cannot encode images: give the benchmark its features with
    ``with_source_features(benchmark, encoder)``. Row i belongs to row i of the data set that
    the benchmark was made from (in ``adaptation_benchmark``: the target's rows, with
    ``transductive=True`` those of the test, then the source's).

    :param features: for the training stream, or a mapping from stream names: a
        ``.safetensors`` file (one tensor, or one named ``"features"``), a ``.npy`` or ``.npz``
        file (read without pickle, the same rule), an array or a tensor, of shape
        ``(N, dim)``; further dimensions are flattened. A list of these: one an experience.
    :ivar dim: number of features.
    :ivar streams: by stream name the features of every experience, ``(N, dim)`` each.
    :raises ValueError: for files that cannot be read, widths that differ, or values that are
        not finite (the first such row is named).
    """

    def __init__(self, features: Features | Mapping[str, Features]):
        super().__init__()
        named = features if isinstance(features, Mapping) else {"train": features}
        self.streams: dict[str, list[Tensor]] = {}
        for stream, parts in named.items():
            several = isinstance(parts, Sequence) and not isinstance(parts, str)
            found = [_read(part, stream) for part in (parts if several else [parts])]
            self.streams[stream] = found
        widths = {tensor.shape[1] for tensors in self.streams.values() for tensor in tensors}
        if len(widths) != 1:
            raise ValueError(f"the features have to be of one width, got {sorted(widths)}.")
        (self.dim,) = widths
        self.freeze()

    def extra_repr(self) -> str:
        """Return the rows of every stream and the width, for ``print(model)``."""
        rows = {name: [len(t) for t in tensors] for name, tensors in self.streams.items()}
        return f"rows={rows}, dim={self.dim}"

    def encode(self, x: Tensor) -> Tensor:
        """Raise ValueError, always: there is no network."""
        raise ValueError(
            "PrecomputedEncoder has no network to run on images; give the benchmark its features: "
            "benchmark = with_source_features(benchmark, encoder)."
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over the features."""
        return Fingerprint().value(self.streams).hexdigest()


def _read(data: Features, stream: str) -> Tensor:
    if isinstance(data, str | Path):
        where, tensor = repr(str(data)), _load(Path(data).expanduser())
    else:
        where = f"the features of {stream!r}"
        tensor = data if isinstance(data, Tensor) else torch.from_numpy(np.asarray(data))
    if not tensor.is_floating_point():
        raise ValueError(f"{where}: features have to be floats, got {tensor.dtype}.")
    if tensor.dim() < 2 or not tensor.numel():
        raise ValueError(f"{where}: expected features (N, dim), got {tuple(tensor.shape)}.")
    tensor = tensor.detach().flatten(1)
    for start in range(0, len(tensor), 4096):
        finite = torch.isfinite(tensor[start : start + 4096]).all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise ValueError(f"{where}: row {row} is not finite (NaN or infinity).")
    return tensor


def _load(path: Path) -> Tensor:
    if not path.is_file():
        raise ValueError(f"{str(path)!r}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                result: Tensor = file.get_tensor(_only(list(file.keys()), path))
                return result
        if path.suffix == ".npy":
            return torch.from_numpy(np.array(np.load(path, allow_pickle=False)))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return torch.from_numpy(archive[_only(archive.files, path)])
    except (SafetensorError, ValueError, OSError, EOFError, TypeError) as problem:
        raise ValueError(
            f"{str(path)!r} could not be read (pickled arrays are refused): {problem}"
        ) from problem
    raise ValueError(f"{str(path)!r}: expected .safetensors, .npy or .npz.")


def _only(names: Sequence[str], path: Path) -> str:
    if "features" in names:
        return "features"
    if len(names) != 1:
        raise ValueError(f"holds {sorted(names)}; one tensor, or one named 'features', is needed")
    return names[0]
