"""Per-sample gradients of a parameter whose layers have a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_cetl.information.gradients.bundles import Bundle, Layout
from avalanche_cetl.information.gradients.capture import Call
from avalanche_cetl.information.gradients.forms import Factors, Form
from avalanche_cetl.information.gradients.layers import embedding, embedding_square_sum
from avalanche_cetl.information.gradients.precision import single, wide


class Use(NamedTuple):
    """One call of a layer that holds the parameter.

    :ivar local: the parameter's name there.
    :ivar rowwise: which inputs of the call have a row for each sample.
    """

    module: nn.Module
    local: str
    form: Form
    call: Call
    rowwise: Sequence[bool]

    def given(self, rows: slice, g: Tensor) -> tuple[Any, tuple[Any, ...], Tensor]:
        """Return what the form reads of some rows: the layer, its inputs and output gradient.

        :param rows: which of the batch.
        :param g: output gradient of these rows.
        """
        g = single(g)
        inputs = (*self.call.inputs, *self.call.named.values())
        return self.module, tuple(
            wide(v[rows] if own else v, g) if isinstance(v, Tensor) else v
            for v, own in zip(inputs, self.rowwise, strict=True)
        ), g  # fmt: skip

    def gradients(self, rows: slice, g: Tensor) -> Tensor:
        """Compute per-sample gradients of some rows, ``(n, ...)``, in memory of their own."""
        found = self.form.rule(*self.given(rows, g))
        if self.form.factored:
            return found.restore(found.left @ found.right)
        # The caller writes into them, and a user's form may return what it was given.
        return found if self.form.builtin else found.detach().clone()


class LayerBundle(Bundle):
    """A parameter with a closed form, used in one or more calls of its layers."""

    def __init__(self, name: str, parameter: Tensor, uses: list[Use]):
        super().__init__({name: parameter})
        self.name, self.uses = name, uses
        first = uses[0]
        # Several losses may each read a call of their own: a decoder of two codes does.
        self._by_loss = [
            [use for use in uses if use.call.gradients[k] is not None]
            for k in range(len(first.call.gradients))
        ]
        self._single = all(len(found) <= 1 for found in self._by_loss) and all(
            use.module is first.module and use.local == first.local for use in uses
        )
        self._layout = super().layout(name)
        self._positions = self._column_bytes = 0
        if self.factored:
            for loss in range(len(self._by_loss)):
                probe = self.factors(slice(0, 1), loss)
                shape = torch.Size([*probe.left.shape[1:-1], probe.right.shape[-1]])
                self._layout = Layout(shape, probe.restore)
                self._positions = max(self._positions, probe.left.shape[-1])
                self._column_bytes = max(self._column_bytes, probe.right.numel() * 4)

    def alive(self, loss: int) -> bool:
        """Return whether the loss reaches it."""
        return bool(self._by_loss[loss])

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and what they take to make."""
        return super().row_bytes() + self._column_bytes

    @property
    def factor_bytes(self) -> int:
        """Return the memory of one sample's right factor, the larger one in convolutions."""
        return self._column_bytes

    @property
    def factored(self) -> bool:
        """Whether each loss's gradients are one product of two factors."""
        return self._single and self.uses[0].form.factored

    def factors(self, rows: slice, loss: int) -> Factors:
        """Return both factors for some samples; zero where the loss does not reach them."""
        use = self.uses[0]
        if self._by_loss[loss]:
            (use,) = self._by_loss[loss]
        g = use.call.gradients[loss]
        if g is None:
            g = torch.zeros_like(next(g for g in use.call.gradients if g is not None))
        return use.form.rule(*use.given(rows, g[rows]))

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Compute per-sample gradients of some rows."""
        if self.factored:
            found = self.factors(rows, loss)
            return {self.name: found.left @ found.right}
        shape = self.params[self.name].shape
        total: Tensor | None = None
        for use in self._by_loss[loss]:
            g = use.call.gradients[loss]
            assert g is not None
            part = use.gradients(rows, g[rows]).reshape(len(g[rows]), *shape)
            total = part if total is None else total + part
        if total is None:
            total = self._zeros(self.name, rows)
        return {self.name: total}

    def outer(self, loss: int) -> Factors | None:
        """Return both factors, where there is one position."""
        if not self.factored or len(self._layout.shape) != 2 or self._positions != 1:
            return None
        return self.factors(slice(None), loss)

    def square_sum(self, loss: int) -> Tensor | None:
        """Return the sum of squares of an Embedding, without a table per sample."""
        if not self._single or self.uses[0].form.rule is not embedding:
            return None
        (use,) = self._by_loss[loss]
        g = use.call.gradients[loss]
        assert g is not None
        layer, inputs, g = use.given(slice(None), g)
        return embedding_square_sum(layer, inputs[0], g)

    def layout(self, name: str) -> Layout:
        """Return the shape of the products of factors, where the layer has factors."""
        return self._layout
