"""From the calls of a captured batch to bundles of per-sample gradients, by each one's route."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from avalanche_cetl.information.gradients.bundles import Bundle, ExpandedBundle
from avalanche_cetl.information.gradients.capture import Call, Captured
from avalanche_cetl.information.gradients.layer_bundle import LayerBundle
from avalanche_cetl.information.gradients.module_bundle import ModuleBundle
from avalanche_cetl.information.gradients.recurrent import calls_by_parameter, unrolled
from avalanche_cetl.information.gradients.routes import Route, RowMismatchError


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
