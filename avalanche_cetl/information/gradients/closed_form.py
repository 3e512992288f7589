"""Per-sample gradients of a parameter whose layers have a grad sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_cetl.information.gradients.capture import Call
from avalanche_cetl.information.gradients.grad_sample import GradSample, Layout, Piece, slices
from avalanche_cetl.information.gradients.grad_samplers import (
    convolution,
    depthwise_product,
    embedding,
    embedding_square_sum,
    is_depthwise,
)
from avalanche_cetl.information.gradients.precision import like_dtype, to_float32
from avalanche_cetl.information.gradients.registry import Factors, GradSampler

#: Samples at a time where the gradient of a single one is larger than the block, and the layer's
#: rows are taken a few at a time. Measured for 1536 x 2048 weights, 32 samples of 16 tokens: 1
#: sample takes 1.7 times as long as 16, 4 and 8 take 1.14 times, 32 take 1.2 times. Fewer samples
#: hold less.
_LARGE_LAYER_SAMPLES = 8
#: What the products of a depthwise convolution take, as a multiple of its input. Two are made at a
#: time; with 4 in the place of 12, those of a 5 x 5 kernel leave the cache and take 1.4 times as
#: long.
_DEPTHWISE = 12


class Use(NamedTuple):
    """One call of a layer that holds the parameter.

    :ivar local: the parameter's name there.
    :ivar rowwise: which inputs of the call have a row for each sample.
    """

    module: nn.Module
    local: str
    sampler: GradSampler
    call: Call
    rowwise: Sequence[bool]

    def given(self, rows: slice, g: Tensor) -> tuple[Any, tuple[Any, ...], Tensor]:
        """Return what the grad sampler reads of some rows: layer, inputs, output gradient.

        :param rows: which of the batch.
        :param g: output gradient of these rows.
        """
        g = to_float32(g)
        inputs = tuple(
            like_dtype(v[rows] if own else v, g) if isinstance(v, Tensor) else v
            for v, own in zip(self.call.values, self.rowwise, strict=True)
        )
        return self.module, inputs, g

    def gradients(self, rows: slice, g: Tensor) -> Tensor:
        """Compute per-sample gradients of some rows, ``(n, ...)``, in memory of their own."""
        computed: Tensor | Factors = self.sampler.function(*self.given(rows, g))
        if isinstance(computed, Factors):
            return computed.restore(computed.left @ computed.right)
        if self.sampler.builtin:
            return computed
        shape = self.module.get_parameter(self.local).shape
        wanted = f"({', '.join(['n', *map(str, shape)])})"
        if not isinstance(computed, Tensor):
            missing = ": is the return missing?" if computed is None else f", not {wanted}."
            raise TypeError(f"returned {computed!r}{missing}")
        if computed.numel() != len(g) * shape.numel():
            raise ValueError(f"gave {tuple(computed.shape)}, not {wanted} with n = {len(g)}.")
        # The caller writes into them, and a user's function may return what it was given.
        return computed.detach().clone()


class ClosedForm(GradSample):
    """A parameter with a grad sampler, used in one or more calls of its layers."""

    def __init__(self, name: str, parameter: Tensor, uses: list[Use]):
        super().__init__({name: parameter})
        self.name, self.uses = name, uses
        first = uses[0]
        # Several losses may each read a call of their own: a decoder of two codes does.
        self._by_loss = [
            [use for use in uses if use.call.gradients[k] is not None]
            for k in range(len(first.call.gradients))
        ]
        self._one_use = all(len(of_loss) <= 1 for of_loss in self._by_loss) and all(
            use.module is first.module and use.local == first.local for use in uses
        )
        self.factored = self._one_use and first.sampler.factored
        #: Whether its products are made without its factors.
        self.depthwise = first.sampler.function is convolution and is_depthwise(first.module)
        self._layout = super().layout(name)
        #: Positions of a sample, pixels or tokens; 0 where the gradients are not factored.
        self.positions = 0
        #: Memory of one sample's right factor, the larger one in convolutions; and of what its
        #: product takes.
        self.factor_bytes = self.product_bytes = 0
        if self.factored:
            for loss in range(len(self._by_loss)):
                probe = self.factors(slice(0, 1), loss)
                shape = torch.Size([*probe.left.shape[1:-1], probe.right.shape[-1]])
                self._layout = Layout(shape, probe.restore)
                self.positions = max(self.positions, probe.left.shape[-1])
                self.factor_bytes = max(self.factor_bytes, probe.right.numel() * 4)
                self.product_bytes = self.factor_bytes
            if self.depthwise:
                self.product_bytes = _DEPTHWISE * first.call.x[:1].numel() * 4

    def reached(self, loss: int) -> bool:
        """Return whether the loss reaches it."""
        return bool(self._by_loss[loss])

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and what they take to make."""
        return super().row_bytes() + self.product_bytes

    def factors(self, rows: slice, loss: int) -> Factors:
        """Return both factors for some samples; zero where the loss does not reach them."""
        use, given = self._given(rows, loss)
        factors: Factors = use.sampler.function(*given)
        return factors

    def product(self, rows: slice, loss: int) -> tuple[Tensor, Tensor]:
        """Return the products of both factors, and the sums of the left one over positions."""
        if self.depthwise:
            module, inputs, g = self._given(rows, loss)[1]
            return depthwise_product(module, inputs, g), g.flatten(2).sum(-1)[..., None, None]
        factors = self.factors(rows, loss)
        return factors.left @ factors.right, factors.left.sum(-1, keepdim=True)

    def _given(self, rows: slice, loss: int) -> tuple[Use, tuple[Any, tuple[Any, ...], Tensor]]:
        """Return what the grad sampler of a factored layer reads of some samples."""
        use = self.uses[0]
        if self._by_loss[loss]:
            (use,) = self._by_loss[loss]
        g = use.call.gradients[loss]
        if g is None:
            g = torch.zeros_like(next(g for g in use.call.gradients if g is not None))
        return use, use.given(rows, g[rows])

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows."""
        if self.factored:
            return {self.name: self.product(rows, loss)[0]}
        shape = self.params[self.name].shape
        total: Tensor | None = None
        for use in self._by_loss[loss]:
            g = use.call.gradients[loss]
            assert g is not None
            part = use.gradients(rows, g[rows]).reshape(len(g[rows]), *shape)
            total = part if total is None else total + part
        return {self.name: self._zeros(self.name, rows) if total is None else total}

    def outer(self, loss: int) -> Factors | None:
        """Return both factors, where there is one position."""
        if not self.factored or len(self._layout.shape) != 2 or self.positions != 1:
            return None
        return self.factors(slice(None), loss)

    def square_sum(self, loss: int) -> Tensor | None:
        """Return the sum of squares of an Embedding, without a table per sample."""
        if not self._one_use or self.uses[0].sampler.function is not embedding:
            return None
        (use,) = self._by_loss[loss]
        g = use.call.gradients[loss]
        assert g is not None
        layer, inputs, g = use.given(slice(None), g)
        return embedding_square_sum(layer, inputs[0], g)

    def layout(self, name: str) -> Layout:
        """Return the shape of the products of factors, where the layer has factors."""
        return self._layout

    def _parts(self, losses: Sequence[int], samples: int, limit: int) -> Iterator[Piece]:
        size = self._layout.shape
        for rows in slices(samples, min(samples, _LARGE_LAYER_SAMPLES)):
            factors = [self.factors(rows, k) for k in losses]
            count = rows.stop - rows.start
            for part in slices(size[0], max(1, limit // (count * size[1:].numel() * 4))):
                # A grouped layer has groups in front; without, all rows share the right factor.
                rights = [f.right[:, part] if f.right.dim() == 4 else f.right for f in factors]
                gradients = [
                    {self.name: f.left[:, part] @ right}
                    for f, right in zip(factors, rights, strict=True)
                ]
                yield Piece(rows, part, gradients)
