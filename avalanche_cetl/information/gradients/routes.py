"""The ways to a parameter's per-sample gradients, and the gradients along them.

In this order, the cheapest first: the grad samplers of its layers; one copy per sample, for
parameters of shape ``(1, ...)`` such as class tokens; torch.func on the smallest module around it;
torch.func on the whole model; and last the loop, which is right for whatever trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from avalanche_cetl.information.gradients.capture import Call, Captured, RowMismatchError, capture
from avalanche_cetl.information.gradients.closed_form import ClosedForm, Use
from avalanche_cetl.information.gradients.grad_sample import ExpandedGradSample, GradSample
from avalanche_cetl.information.gradients.grad_samplers import grad_sampler_of
from avalanche_cetl.information.gradients.grad_samplers_rnn import calls_by_parameter
from avalanche_cetl.information.gradients.vmap import ModuleVmap
from avalanche_cetl.information.likelihood import BoundLoss

#: What a list or dict of modules has in the place of a forward pass: it is never called.
_NO_FORWARD = nn.ModuleList.forward


@dataclass
class Route:
    """How the per-sample gradients of one parameter are computed.

    :ivar kind: ``"closed_form"`` (grad samplers), ``"expanded"`` (one copy per sample),
        ``"module"`` (torch.func on a module), ``"model"`` (torch.func on the whole model) or
        ``"loop"`` (one backward pass per sample).
    :ivar owners: for ``"closed_form"``, paths of the modules that hold the parameter, with its
        local name there; for ``"module"``, the path of the module that torch.func runs, with the
        name as seen from it.
    :ivar rowwise: which inputs of the calls had a row for each sample when the route was tried:
        for ``"module"`` call by call, for ``"closed_form"`` of all calls as one.
    """

    kind: Literal["closed_form", "expanded", "module", "model", "loop"]
    owners: list[tuple[str, str]] = field(default_factory=list)
    rowwise: list[tuple[bool, ...]] = field(default_factory=list)

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules whose calls it reads."""
        return [model.get_submodule(path) for path, _ in self.owners]


def candidates(model: nn.Module, name: str, parameter: Tensor) -> Iterator[Route]:
    """Iterate over the routes that may be right for a parameter, the cheapest first.

    The last of them is always ``"model"``.

    :param model: that the parameter is of.
    :param name: of the parameter.
    :param parameter: one of ``model.named_parameters()``, so some module holds it.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        yield Route("model")  # scripted modules have no hooks, and no submodules by path
        return
    owners = [
        (path, local)
        for path, module in model.named_modules()
        for local, p in module._parameters.items()
        if p is parameter
    ]
    real = not parameter.is_complex()
    if real and all(grad_sampler_of(model.get_submodule(path), local) for path, local in owners):
        yield Route("closed_form", owners)
    if real and parameter.dim() > 1 and parameter.shape[0] == 1 and len(owners) == 1:
        yield Route("expanded")
    path = name.split(".")
    for depth in range(len(path) - 1, 0, -1):
        module = model.get_submodule(".".join(path[:depth]))
        if type(module).forward is not _NO_FORWARD:
            yield Route("module", [(".".join(path[:depth]), ".".join(path[depth:]))])
    yield Route("model")


def capture_for(
    routes: Mapping[str, Route],
    model: nn.Module,
    inputs: Sequence[Tensor],
    losses: Sequence[BoundLoss],
    rows: slice,
) -> Captured:
    """Run the model once for all routes but ``"model"`` and ``"loop"``, see :func:`capture`."""
    modules = dict.fromkeys(m for route in routes.values() for m in route.modules(model))
    expand = [name for name, route in routes.items() if route.kind == "expanded"]
    return capture(model, inputs, losses, rows, list(modules), expand)


def grad_samples_of(
    model: nn.Module, params: Mapping[str, Tensor], routes: Mapping[str, Route], captured: Captured
) -> list[GradSample]:
    """Return the gradients of a captured batch, by all routes but ``"model"`` and ``"loop"``.

    :raises RowMismatchError: where a module is not called as it was when its route was tried.
    """
    gradients: list[GradSample] = []
    by_module: dict[nn.Module, list[str]] = {}
    for name, parameter in params.items():
        route = routes[name]
        if route.kind == "closed_form":
            uses = [
                _use(name, module, local, call, route, captured.samples)
                for module, (_, local) in zip(route.modules(model), route.owners, strict=True)
                for call in captured.calls[module]
                if any(g is not None for g in call.gradients)
            ]
            if uses:  # a parameter that no loss reaches has none
                gradients.append(ClosedForm(name, parameter, uses))
        elif route.kind == "expanded":
            gradients.append(ExpandedGradSample(name, parameter, captured.expanded[name]))
        elif route.kind == "module":
            by_module.setdefault(route.modules(model)[0], []).append(name)
    for module, names in by_module.items():
        local = [routes[name].owners[0][1] for name in names]
        calls, rowwise = captured.calls[module], routes[names[0]].rowwise
        rowwise = rowwise or [call.rowwise(captured.samples) for call in calls]
        _check_rows(names[0], calls, rowwise, captured.samples)
        chosen = {name: params[name] for name in names}
        gradients.append(ModuleVmap(chosen, module, local, calls, rowwise))
    return gradients


def _use(name: str, module: nn.Module, local: str, call: Call, route: Route, samples: int) -> Use:
    """Return what a parameter's grad sampler reads of a call of its layer."""
    sampler = grad_sampler_of(module, local)
    assert sampler is not None
    if sampler.by_step:
        try:
            call = calls_by_parameter(module, call)[local]
        except ValueError as problem:
            raise RowMismatchError(str(problem)) from problem
    if len(call.x) != samples:
        raise RowMismatchError(name)
    rowwise = call.rowwise(samples)
    if route.rowwise:
        # A table may have as many rows as this batch: what the trial saw of it counts.
        tried = (*route.rowwise[0], *[True] * len(rowwise))
        rowwise = tuple(own and before for own, before in zip(rowwise, tried, strict=False))
    return Use(module, local, sampler, call, rowwise)


def _check_rows(
    name: str, calls: list[Call], rowwise: list[tuple[bool, ...]], samples: int
) -> None:
    if len(calls) != len(rowwise):
        raise RowMismatchError(name)
    for call, flags in zip(calls, rowwise, strict=True):
        if len(call.values) != len(flags) or any(
            own and len(v) != samples for v, own in zip(call.values, flags, strict=True)
        ):
            raise RowMismatchError(name)
        if any(g is not None and len(g) != samples for g in call.gradients):
            raise RowMismatchError(name)
