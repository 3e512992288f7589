"""A batch of samples and its gradients, walked over in pieces that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from avalanche_cetl.information.gradients.bundles import Bundle, SlowBundle
from avalanche_cetl.information.gradients.layer_bundle import LayerBundle

#: Bytes of per-sample gradients held at once on a CPU: they are made, squared and added up while
#: they are in its cache. Measured on one core (CICNN, 64 and 256 images): 2 to 16 MiB are within 8
#: % of one another, 128 MiB take 20 to 40 % longer.
_CPU_BLOCK = 8 * 2**20
#: The same on a GPU, where it is the number of kernels that counts: half of the default
#: chunk_bytes, which is what two losses have each at the most.
_CUDA_BLOCK = 256 * 2**20
#: Samples at a time where the gradient of a single one is larger than the block, and the layer's
#: rows are taken a few at a time. Measured for 1536 x 2048 weights, 32 samples of 16 tokens: 1
#: sample takes 1.7 times as long as 16, 4 and 8 take 1.14 times, 32 take 1.2 times. Fewer samples
#: hold less.
_LARGE_LAYER_SAMPLES = 8


class Piece(NamedTuple):
    """Gradients of some samples, for all or some of a parameter's first layout dimension.

    :ivar rows: which samples of the batch.
    :ivar part: which entries of the first dimension.
    :ivar gradients: per loss asked for, by name ``(n, *layout)`` with that part alone.
    """

    rows: slice
    part: slice
    gradients: list[dict[str, Tensor]]


@dataclass
class Batch:
    """Some samples, and the bundles that compute their gradients.

    :ivar start: index of the first sample.
    :ivar samples: how many there are.
    """

    start: int
    samples: int
    bundles: list[Bundle]
    chunk_bytes: int

    def pieces(self, bundle: Bundle, losses: Sequence[int]) -> Iterator[Piece]:
        """Iterate over the samples, as many at a time as stay in the processor's cache."""
        first = next(iter(bundle.params.values()))
        limit = _CPU_BLOCK if first.device.type == "cpu" else _CUDA_BLOCK
        if isinstance(bundle, SlowBundle):
            limit = self.chunk_bytes
        limit = max(1, min(limit, self.chunk_bytes) // len(losses))
        step = limit // max(1, bundle.row_bytes())
        if step == 0 and isinstance(bundle, LayerBundle) and bundle.factored:
            yield from self._parts(bundle, losses, limit)
            return
        step = max(1, min(self.samples, step))
        for rows in slices(self.samples, step):
            found = [bundle.gradients(k, rows) for k in losses]
            # A parameter without dimensions has a layout of one entry.
            flat = [{n: g if g.dim() > 1 else g.unsqueeze(1) for n, g in f.items()} for f in found]
            yield Piece(rows, slice(None), flat)

    def _parts(self, bundle: LayerBundle, losses: Sequence[int], limit: int) -> Iterator[Piece]:
        """Iterate over a layer too large for that, a few rows of its weight at a time."""
        size = bundle.layout(bundle.name).shape
        for rows in slices(self.samples, min(self.samples, _LARGE_LAYER_SAMPLES)):
            factors = [bundle.factors(rows, k) for k in losses]
            count = rows.stop - rows.start
            step = max(1, limit // (count * size[1:].numel() * 4))
            for part in slices(size[0], step):
                found = [{bundle.name: f.left[:, part] @ _of(f.right, part)} for f in factors]
                yield Piece(rows, part, found)


def _of(right: Tensor, part: slice) -> Tensor:
    """Return a grouped layer's groups; without groups all rows share the right factor."""
    return right[:, part] if right.dim() == 4 else right


def slices(total: int, step: int) -> Iterator[slice]:
    """Return slices of ``step`` that cover ``range(total)``; the last may be shorter."""
    for start in range(0, total, step):
        yield slice(start, min(total, start + step))
