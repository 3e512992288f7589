"""Per-sample gradients of parameters, computed from a captured batch a few samples at a time.

Whatever way they are computed (closed form, torch.func, loop), whoever reads them
walks over :meth:`GradSample.pieces`, which stay in the processor's cache and within
``chunk_bytes``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_cetl.information.gradients.precision import magnitude, to_float32
from avalanche_cetl.information.gradients.registry import Factors

#: Bytes of per-sample gradients held at once on a CPU: they are made, squared and added up while
#: they are in its cache. Measured on one core (CICNN, 64 and 256 images): 2 to 16 MiB are within 8
#: % of one another, 128 MiB take 20 to 40 % longer.
_CPU_BLOCK = 8 * 2**20
#: The same on a GPU, where it is the number of kernels that counts: half of the default
#: chunk_bytes, which is what two losses have each at the most.
_CUDA_BLOCK = 256 * 2**20
#: Bytes of gradients that a :class:`KeptGradSample` keeps at the most, beside ``chunk_bytes``; an
#: eighth of that by default. It holds 16 million float32 values: 1,024 samples of a layer with
#: 16,000 weights, such as a norm, a gate or a small attention. Larger layers are computed again.
KEPT_BYTES = 64 * 2**20


class Layout(NamedTuple):
    """The shape that gradients of a parameter come in, and the way back to the parameter's.

    :ivar shape: without the samples.
    :ivar restore: maps ``(..., *shape)`` to ``(..., *param.shape)``.
    """

    shape: torch.Size
    restore: Callable[[Tensor], Tensor]


class Piece(NamedTuple):
    """Gradients of some samples, for all or some of a parameter's first layout dimension.

    :ivar rows: which samples of the batch.
    :ivar part: which entries of the first dimension.
    :ivar gradients: per loss asked for, by name ``(n, *layout)`` with that part alone.
    """

    rows: slice
    part: slice
    gradients: list[dict[str, Tensor]]


class GradSample:
    """Per-sample gradients of some parameters of one batch.

    :ivar names: of the parameters, whose gradients come together.
    :ivar factored: whether each loss's gradients are one product of two factors.
    """

    factored = False

    def __init__(self, params: Mapping[str, Tensor]):
        self.params = dict(params)
        self.names = list(params)

    def reached(self, loss: int) -> bool:
        """Return whether the loss reaches these parameters at all."""
        return True

    def row_bytes(self) -> int:
        """Return the memory that the gradients of one sample take, in float32."""
        return sum(p.numel() for p in self.params.values()) * 4

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients ``(n, *layout)``, which the caller may write into."""
        raise NotImplementedError

    def outer(self, loss: int) -> Factors | None:
        """Return both factors, where each per-sample gradient is a single outer product."""
        return None

    def square_sum(self, loss: int) -> Tensor | None:
        """Return the sum over samples of squares, in layout, where there is a shorter way to it."""
        return None

    def layout(self, name: str) -> Layout:
        """Return the shape in which :meth:`gradients` returns a parameter's gradient."""
        return Layout(self.params[name].shape or torch.Size([1]), lambda t: t)

    def in_shape(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients ``(n, *param.shape)``."""
        return {
            name: self.layout(name).restore(value).reshape(len(value), *self.params[name].shape)
            for name, value in self.gradients(loss, rows).items()
        }

    def pieces(self, losses: Sequence[int], samples: int, chunk_bytes: int) -> Iterator[Piece]:
        """Iterate over the batch's samples, as many at a time as a block holds, at least one.

        :param losses: whose gradients are asked for.
        :param samples: of the batch.
        :param chunk_bytes: bound on what is held at once.
        """
        limit = max(1, min(self._block_bytes(), chunk_bytes) // len(losses))
        step = limit // max(1, self.row_bytes())
        if step == 0 and self.factored:
            yield from self._parts(losses, samples, limit)
            return
        for rows in slices(samples, max(1, min(samples, step))):
            by_loss = [self.gradients(k, rows) for k in losses]
            # A parameter without dimensions has a layout of one entry.
            flat = [
                {name: g if g.dim() > 1 else g.unsqueeze(1) for name, g in of_loss.items()}
                for of_loss in by_loss
            ]
            yield Piece(rows, slice(None), flat)

    def _block_bytes(self) -> int:
        device = next(iter(self.params.values())).device
        return _CPU_BLOCK if device.type == "cpu" else _CUDA_BLOCK

    def _parts(self, losses: Sequence[int], samples: int, limit: int) -> Iterator[Piece]:
        """Iterate over a factored layer that is too large, a few rows of its weight at a time."""
        raise NotImplementedError

    def _zeros(self, name: str, rows: slice) -> Tensor:
        parameter = magnitude(self.params[name].detach())
        return to_float32(parameter.new_zeros(rows.stop - rows.start, *parameter.shape))


class ExpandedGradSample(GradSample):
    """A parameter of shape (1, ...), differentiated with one copy per sample."""

    def __init__(self, name: str, parameter: Tensor, gradients: list[Tensor | None]):
        super().__init__({name: parameter})
        self._gradients = gradients

    def reached(self, loss: int) -> bool:
        """Return whether the loss reaches it."""
        return self._gradients[loss] is not None

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows."""
        g = self._gradients[loss]
        if g is None:
            return {self.names[0]: self._zeros(self.names[0], rows)}
        return {self.names[0]: to_float32(g[rows].unsqueeze(1).clone())}


class KeptGradSample(GradSample):
    """Gradients that take long to compute: small ones are kept.

    Measuring two tasks takes two rounds over the samples.
    """

    def __init__(self, params: Mapping[str, Tensor]):
        super().__init__(params)
        self._kept: dict[tuple[int, int, int], dict[str, Tensor]] = {}
        self._room = KEPT_BYTES

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows."""
        key = (loss, rows.start, rows.stop)
        if key not in self._kept:
            gradients = self._computed(loss, rows)
            size = sum(value.nbytes for value in gradients.values())
            if size > self._room:
                return gradients
            self._kept[key] = gradients
            self._room -= size
        return {name: value.clone() for name, value in self._kept[key].items()}

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        raise NotImplementedError

    def _block_bytes(self) -> int:
        return sys.maxsize  # as many samples in one go as chunk_bytes allows


@dataclass
class Batch:
    """Some samples, and the gradients of their parameters.

    :ivar rows: which samples of all.
    :ivar grad_samples: those of all parameters that a loss reaches.
    """

    rows: slice
    grad_samples: list[GradSample]
    chunk_bytes: int

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return int(self.rows.stop - self.rows.start)

    def pieces(self, grad_sample: GradSample, losses: Sequence[int]) -> Iterator[Piece]:
        """Iterate over the gradients of all samples, see :meth:`GradSample.pieces`."""
        return grad_sample.pieces(losses, self.samples, self.chunk_bytes)


def slices(total: int, step: int) -> Iterator[slice]:
    """Return slices of ``step`` that cover ``range(total)``; the last may be shorter."""
    for start in range(0, total, step):
        yield slice(start, min(total, start + step))
