"""Per-sample gradients of the parameters of one module, by torch.func on that module alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from avalanche_cetl.information.gradients.bundles import SlowBundle
from avalanche_cetl.information.gradients.capture import Call
from avalanche_cetl.information.gradients.functional import call_gradients, current_autocast
from avalanche_cetl.information.gradients.precision import magnitude
from avalanche_cetl.information.gradients.routes import RowMismatchError

#: Memory that a module's pass keeps for its backward pass, over that of its inputs: 7 measured for
#: torch's attention, 10 for a whole encoder layer, 1 for a norm.
_KEPT_PER_INPUT = 8


class ModuleBundle(SlowBundle):
    """Parameters below one module, by torch.func on that module alone."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        module: nn.Module,
        local: list[str],
        calls: list[Call],
        rowwise: list[tuple[bool, ...]],
    ):
        super().__init__(params)
        self.module, self.local, self.calls, self.rowwise = module, local, calls, rowwise
        self._autocast = current_autocast(next(iter(params.values())).device)

    def alive(self, loss: int) -> bool:
        """Return whether the loss reaches it."""
        return any(call.gradients[loss] is not None for call in self.calls)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and what they take to make."""
        inputs = sum(
            v[0].numel() * v.element_size() * _KEPT_PER_INPUT
            for call in self.calls
            for v in (*call.inputs, *call.named.values())
            if isinstance(v, Tensor) and v.dim()
        )
        return super().row_bytes() + inputs

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        chosen = dict(zip(self.local, self.params.values(), strict=True))
        for call, rowwise in zip(self.calls, self.rowwise, strict=True):
            g = call.gradients[loss]
            if g is None:
                continue
            values = [
                v[rows] if own else v
                for v, own in zip((*call.inputs, *call.named.values()), rowwise, strict=True)
            ]
            args = tuple(values[: len(call.inputs)])
            named = dict(zip(call.named, values[len(args) :], strict=True))
            try:
                with self._autocast():
                    found = call_gradients(self.module, args, named, g[rows], chosen, rowwise)
            except (RuntimeError, NotImplementedError) as problem:
                raise RowMismatchError(f"torch.func cannot run a module: {problem}") from problem
            for name, local in zip(self.names, self.local, strict=True):
                total[name] = total[name] + found[local] if name in total else found[local]
        if not total:
            return {name: self._zeros(name, rows) for name in self.names}
        return {name: magnitude(value) for name, value in total.items()}
