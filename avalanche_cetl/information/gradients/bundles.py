"""Per-sample gradients of parameters, computed a few samples at a time from a captured batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_cetl.information.gradients.forms import Factors
from avalanche_cetl.information.gradients.precision import magnitude, single

#: Bytes of gradients that a :class:`SlowBundle` keeps at the most, beside the engine's own bound;
#: an eighth of that by default. It holds 16 million float32 values: 1,024 samples of a layer with
#: 16,000 weights, such as a norm, a gate or a small attention. Larger layers are computed again.
KEPT_BYTES = 64 * 2**20

#: ``(loss, rows, gradients)``; raises where they are wrong.
Proven = Callable[[int, slice, Mapping[str, Tensor]], None]


class Layout(NamedTuple):
    """The shape that gradients of a parameter come in, and the way back to the parameter's.

    :ivar shape: without the samples.
    :ivar restore: maps ``(..., *shape)`` to ``(..., *param.shape)``.
    """

    shape: torch.Size
    restore: Callable[[Tensor], Tensor]


class Bundle:
    """Per-sample gradients of some parameters of one batch, computed a few rows at a time.

    :ivar names: parameters whose gradients come together.
    """

    def __init__(self, params: Mapping[str, Tensor]):
        self.params = dict(params)
        self.names = list(params)

    def alive(self, loss: int) -> bool:
        """Return whether the loss reaches these parameters at all."""
        return True

    def row_bytes(self) -> int:
        """Return the memory that the gradients of one sample take, in float32."""
        return sum(p.numel() for p in self.params.values()) * 4

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients ``(n, *layout)``, which the caller may write into."""
        raise NotImplementedError

    def _zeros(self, name: str, rows: slice) -> Tensor:
        parameter = magnitude(self.params[name].detach())
        zeros = parameter.new_zeros(rows.stop - rows.start, *parameter.shape)
        return single(zeros)

    def outer(self, loss: int) -> Factors | None:
        """Return both factors, where each per-sample gradient is a single outer product."""
        return None

    def square_sum(self, loss: int) -> Tensor | None:
        """Return the sum over samples of squares, in layout, where there is a shorter way to it."""
        return None

    def layout(self, name: str) -> Layout:
        """Return the shape in which :meth:`gradients` returns a parameter's gradient."""
        return Layout(self.params[name].shape or torch.Size([1]), lambda t: t)


class ExpandedBundle(Bundle):
    """A parameter of shape (1, ...), differentiated with one copy per sample."""

    def __init__(self, name: str, parameter: Tensor, gradients: list[Tensor | None]):
        super().__init__({name: parameter})
        self._gradients = gradients

    def alive(self, loss: int) -> bool:
        """Return whether the loss reaches it."""
        return self._gradients[loss] is not None

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows."""
        g = self._gradients[loss]
        if g is None:
            return {self.names[0]: self._zeros(self.names[0], rows)}
        g = g[rows].unsqueeze(1).clone()
        return {self.names[0]: single(g)}


class SlowBundle(Bundle):
    """Gradients that take long to compute: small ones are kept.

    Measuring two tasks takes two rounds over the samples.

    :ivar proof: called with gradients as they are computed, their loss and their rows.
    """

    def __init__(self, params: Mapping[str, Tensor]):
        super().__init__(params)
        self.proof: Proven | None = None
        self._kept: dict[tuple[int, int, int], dict[str, Tensor]] = {}
        self._room = KEPT_BYTES

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows."""
        key = (loss, rows.start, rows.stop)
        if key not in self._kept:
            found = self._computed(loss, rows)
            if self.proof is not None:
                self.proof(loss, rows, found)
            size = sum(value.nbytes for value in found.values())
            if size > self._room:
                return found
            self._kept[key] = found
            self._room -= size
        return {name: value.clone() for name, value in self._kept[key].items()}

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        raise NotImplementedError
