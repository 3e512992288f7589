"""Per-sample gradients of parameters, computed a few samples at a time from a captured batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avalanche_cetl.common.processes import StartAgainError
from avalanche_cetl.information.gradients import layers
from avalanche_cetl.information.gradients.capture import Call, Captured
from avalanche_cetl.information.gradients.functional import call_gradients, current_autocast
from avalanche_cetl.information.gradients.recurrent import calls_by_parameter, unrolled

#: Gradients that a bundle keeps at the most: those of a layer of some thousand weights.
KEPT_BYTES = 64 * 2**20

#: ``(loss, rows, gradients)``; raises where they are wrong.
Proven = Callable[[int, slice, Mapping[str, Tensor]], None]


@dataclass
class Route:
    """How the per-sample gradients of one parameter are found.

    :ivar kind: ``"layer"``, ``"expanded"``, ``"module"``, ``"model"`` (torch.func on the whole
        model) or ``"plain"`` (a backward pass a sample).
    :ivar owners: for ``"layer"``, paths of the modules that hold it, with its local name
        there; for ``"module"`` that of the module that torch.func runs, with the name seen
        from it.
    :ivar rowwise: for ``"module"``, per call which inputs have a row for each sample.
    """

    kind: str
    owners: list[tuple[str, str]] = field(default_factory=list)
    rowwise: list[tuple[bool, ...]] = field(default_factory=list)


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
        """Whether the loss reaches these parameters at all."""
        return True

    def row_bytes(self) -> int:
        """Memory that the gradients of one sample take."""
        return sum(p.numel() for p in self.params.values()) * 4

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Per-sample gradients ``(n, *layout)``, the caller's own; see :meth:`layout`."""
        raise NotImplementedError

    def _zeros(self, name: str, rows: slice) -> Tensor:
        parameter = magnitude(self.params[name].detach())
        zeros = parameter.new_zeros(rows.stop - rows.start, *parameter.shape)
        return single(zeros)

    def outer(self, loss: int) -> layers.Factors | None:
        """Both factors, when each per-sample gradient is a single outer product."""
        return None

    def square_sum(self, loss: int) -> Tensor | None:
        """Sum over samples of squares, in layout, where there is a shorter way to it."""
        return None

    def layout(self, name: str) -> Layout:
        """How :meth:`gradients` gives a parameter's gradient."""
        return Layout(self.params[name].shape or torch.Size([1]), lambda t: t)


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
        return self._factors(module, *_wide(call.x[rows].detach(), g[rows]))

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
            x, g = _wide(call.x[rows].detach(), g[rows])
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
            return layers.embedding_square_sum(module, *_wide(call.x, g))
        return None

    def layout(self, name: str) -> Layout:
        """Outer products come with the positions of a window last."""
        return self._layout


class ExpandedBundle(Bundle):
    """A parameter of shape (1, ...), differentiated with one copy per sample."""

    def __init__(self, name: str, parameter: Tensor, gradients: list[Tensor | None]):
        super().__init__({name: parameter})
        self._gradients = gradients

    def alive(self, loss: int) -> bool:
        """Whether the loss reaches it."""
        return self._gradients[loss] is not None

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Per-sample gradients of some rows."""
        g = self._gradients[loss]
        if g is None:
            return {self.names[0]: self._zeros(self.names[0], rows)}
        g = g[rows].unsqueeze(1).clone()
        return {self.names[0]: single(g)}


class SlowBundle(Bundle):
    """Gradients that take long to compute: small ones are kept.

    Whoever measures two tasks walks over the samples twice.

    :ivar proof: is shown the gradients that were computed, with their loss and rows.
    """

    def __init__(self, params: Mapping[str, Tensor]):
        super().__init__(params)
        self.proof: Proven | None = None
        self._kept: dict[tuple[int, int, int], dict[str, Tensor]] = {}
        self._room = KEPT_BYTES

    def gradients(self, loss: int, rows: slice) -> dict[str, Tensor]:
        """Per-sample gradients of some rows."""
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
        """Whether the loss reaches it."""
        return any(call.gradients[loss] is not None for call in self.calls)

    def row_bytes(self) -> int:
        """Memory of one sample's gradients and what they take to make."""
        inputs = sum(
            v[0].numel() * v.element_size() * 8
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


class RowMismatchError(StartAgainError):
    """A layer sees other rows than the batch's, so its calls cannot be told apart by sample."""


def make_bundles(
    model: nn.Module, params: Mapping[str, Tensor], routes: Mapping[str, Route], captured: Captured
) -> list[Bundle]:
    """Sort the captured calls into bundles; parameters that nothing reached have none."""
    bundles: list[Bundle] = []
    by_module: dict[nn.Module, list[str]] = {}
    for name, parameter in params.items():
        route = routes[name]
        if route.kind == "layer":
            uses = [
                (module, local, _call_of(module, local, call))
                for path, local in route.owners
                for module in (model.get_submodule(path),)
                for call in captured.calls[module]
                if any(g is not None for g in call.gradients)
            ]
            if any(len(call.x) != captured.samples for _, _, call in uses):
                raise RowMismatchError(name)
            if uses:
                bundles.append(LayerBundle(name, parameter, uses))
        elif route.kind == "expanded":
            bundles.append(ExpandedBundle(name, parameter, captured.expanded[name]))
        elif route.kind == "module":
            by_module.setdefault(model.get_submodule(route.owners[0][0]), []).append(name)
    for module, names in by_module.items():
        local = [routes[name].owners[0][1] for name in names]
        chosen = {name: params[name] for name in names}
        calls = captured.calls[module]
        rowwise = routes[names[0]].rowwise or rows_of(calls, captured.samples)
        _check_rows(names[0], calls, rowwise, captured.samples)
        bundles.append(ModuleBundle(chosen, module, local, calls, rowwise))
    return bundles


def _call_of(module: nn.Module, local: str, call: Call) -> Call:
    """The call that a parameter's closed form reads: for a recurrent layer, that of one weight."""
    if not unrolled(module):
        return call
    try:
        return calls_by_parameter(module, call)[local]
    except ValueError as problem:
        raise RowMismatchError(str(problem)) from problem


def rows_of(calls: list[Call], samples: int) -> list[tuple[bool, ...]]:
    """Tell which inputs of each call have as many rows as there are samples."""
    return [
        tuple(
            isinstance(v, Tensor) and v.dim() > 0 and len(v) == samples
            for v in (*call.inputs, *call.named.values())
        )
        for call in calls
    ]


def _check_rows(
    name: str, calls: list[Call], rowwise: list[tuple[bool, ...]], samples: int
) -> None:
    """Raise where a module is not called as it was when its route was tried."""
    if len(calls) != len(rowwise):
        raise RowMismatchError(name)
    for call, flags in zip(calls, rowwise, strict=True):
        inputs = (*call.inputs, *call.named.values())
        if len(inputs) != len(flags) or any(
            own and len(v) != samples for v, own in zip(inputs, flags, strict=True)
        ):
            raise RowMismatchError(name)
        if any(g is not None and len(g) != samples for g in call.gradients):
            raise RowMismatchError(name)


def magnitude(gradient: Tensor) -> Tensor:
    """Return the absolute values of a complex gradient, a real one as it is.

    What is measured are squares: for a complex weight ``w = a + bi`` torch's gradient is
    ``dL/da + i dL/db``, and ``(dL/da)^2 + (dL/db)^2`` the square of its absolute value.
    """
    return gradient.abs() if gradient.is_complex() else gradient


def single(values: Tensor) -> Tensor:
    """Half precision becomes float32 before anything is squared or added up."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _wide(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision becomes float32 before anything is multiplied or added up."""
    g = single(g)
    return (x.to(g.dtype) if x.is_floating_point() else x), g
