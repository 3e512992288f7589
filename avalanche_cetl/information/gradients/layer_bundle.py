"""Per-sample gradients of a parameter whose layers have a closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avalanche_cetl.information.gradients import layers
from avalanche_cetl.information.gradients.bundles import Bundle, Layout
from avalanche_cetl.information.gradients.capture import Call
from avalanche_cetl.information.gradients.precision import wide


class LayerBundle(Bundle):
    """A parameter with a closed form, used in one or more calls of its layers."""

    def __init__(self, name: str, parameter: Tensor, uses: list[tuple[nn.Module, str, Call]]):
        super().__init__({name: parameter})
        self.name, self.uses = name, uses
        module, local, first = uses[0]
        self._factors = layers.factors(module, local)
        # Several losses may each read a call of their own: a decoder of two codes does.
        self._by_loss = [
            [call for _, _, call in uses if call.gradients[k] is not None]
            for k in range(len(first.gradients))
        ]
        self._single = all(len(calls) <= 1 for calls in self._by_loss) and all(
            other is module and own == local for other, own, _ in uses
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
        """Whether the loss reaches it."""
        return any(call.gradients[loss] is not None for _, _, call in self.uses)

    def row_bytes(self) -> int:
        """Memory of one sample's gradients and what they take to make."""
        return super().row_bytes() + self._column_bytes

    @property
    def factored(self) -> bool:
        """Whether each loss's gradients are one product of two factors."""
        return self._single and self._factors is not None

    def factors(self, rows: slice, loss: int) -> layers.Factors:
        """Both factors for some samples; zero where the loss does not reach them."""
        module, _, call = self.uses[0]
        assert self._factors is not None
        if self._by_loss[loss]:
            (call,) = self._by_loss[loss]
        g = call.gradients[loss]
        if g is None:
            g = torch.zeros_like(next(g for g in call.gradients if g is not None))
        return self._factors(module, *wide(call.x[rows].detach(), g[rows]))

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Per-sample gradients of some rows."""
        if self.factored:
            found = self.factors(rows, loss)
            return {self.name: found.left @ found.right}
        shape = self.params[self.name].shape
        total: Tensor | None = None
        for module, local, call in self.uses:
            g = call.gradients[loss]
            if g is None:
                continue
            x, g = wide(call.x[rows].detach(), g[rows])
            make = layers.factors(module, local)
            if make is not None:
                left, right, restore = make(module, x, g)
                part = restore(left @ right)
            else:
                rule = layers.direct(module, local)
                assert rule is not None
                part = rule(module, x, g)
            part = part.reshape(len(g), *shape)
            total = part if total is None else total + part
        if total is None:
            total = self._zeros(self.name, rows)
        return {self.name: total}

    def outer(self, loss: int) -> layers.Factors | None:
        """Both factors, where there is one position."""
        if not self.factored or len(self._layout.shape) != 2 or self._positions != 1:
            return None
        return self.factors(slice(None), loss)

    def square_sum(self, loss: int) -> Tensor | None:
        """Sum of squares of an Embedding, without a table per sample."""
        module = self.uses[0][0]
        if self._single and isinstance(module, nn.Embedding):
            (call,) = self._by_loss[loss]
            g = call.gradients[loss]
            assert g is not None
            return layers.embedding_square_sum(module, *wide(call.x, g))
        return None

    def layout(self, name: str) -> Layout:
        """Outer products come with the positions of a window last."""
        return self._layout
