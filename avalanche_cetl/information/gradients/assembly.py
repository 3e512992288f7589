"""From the calls of a captured batch to bundles of per-sample gradients, by each one's route."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from avalanche_cetl.information.gradients.bundles import Bundle, ExpandedBundle
from avalanche_cetl.information.gradients.capture import Call, Captured
from avalanche_cetl.information.gradients.layer_bundle import LayerBundle, Use
from avalanche_cetl.information.gradients.layers import form_of
from avalanche_cetl.information.gradients.module_bundle import ModuleBundle
from avalanche_cetl.information.gradients.recurrent import calls_by_parameter
from avalanche_cetl.information.gradients.routes import Route, RowMismatchError


def make_bundles(
    model: nn.Module, params: Mapping[str, Tensor], routes: Mapping[str, Route], captured: Captured
) -> list[Bundle]:
    """Return the captured calls as bundles; parameters that nothing reached have none."""
    bundles: list[Bundle] = []
    by_module: dict[nn.Module, list[str]] = {}
    for name, parameter in params.items():
        route = routes[name]
        if route.kind == "layer":
            uses = [
                use
                for path, local in route.owners
                for module in (model.get_submodule(path),)
                for call in captured.calls[module]
                if any(g is not None for g in call.gradients)
                for use in (_use_of(name, module, local, call, route, captured.samples),)
            ]
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


def _use_of(
    name: str, module: nn.Module, local: str, call: Call, route: Route, samples: int
) -> Use:
    """Return what a parameter's closed form reads of a call of its layer."""
    form = form_of(module, local)
    assert form is not None
    if form.by_step:
        try:
            call = calls_by_parameter(module, call)[local]
        except ValueError as problem:
            raise RowMismatchError(str(problem)) from problem
    if len(call.x) != samples:
        raise RowMismatchError(name)
    (rowwise,) = rows_of([call], samples)
    if route.rowwise:
        # A table may have as many rows as this batch: what the trial saw of it counts.
        tried = (*route.rowwise[0], *[True] * len(rowwise))
        rowwise = tuple(own and before for own, before in zip(rowwise, tried, strict=False))
    return Use(module, local, form, call, rowwise)


def rows_of(calls: list[Call], samples: int) -> list[tuple[bool, ...]]:
    """Return, for each call, which of its inputs have as many rows as there are samples."""
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
