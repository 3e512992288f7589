"""Which way to a parameter's per-sample gradients is right, and cheapest.

In this order: a closed form of its layer; one copy per sample, for parameters of shape
``(1, ...)`` such as class tokens; torch.func on the smallest module around it; and torch.func
on the whole model. Whether a route is right for a parameter is not guessed but tried, on two
samples against plain autograd, so that shared layers, tied weights, custom forward passes and
layers that mix samples find the route that holds for them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from avalanche_cetl.information import layers
from avalanche_cetl.information.bundles import (
    Bundle,
    Route,
    RowMismatchError,
    make_bundles,
    rows_of,
)
from avalanche_cetl.information.capture import Captured, capture, gradients_for
from avalanche_cetl.information.likelihood import BoundLoss

logger = logging.getLogger(__name__)


def run_routes(
    model: nn.Module,
    inputs: Sequence[Tensor],
    losses: Sequence[BoundLoss],
    rows: slice,
    routes: Mapping[str, Route],
) -> Captured:
    """Run the model once for all routes but ``"model"``."""
    modules: dict[nn.Module, None] = {}
    for route in routes.values():
        modules.update(dict.fromkeys(model.get_submodule(path) for path, _ in route.owners))
    expand = [name for name, route in routes.items() if route.kind == "expanded"]
    return capture(model, inputs, losses, rows, list(modules), expand)


class Plan(NamedTuple):
    """What :func:`plan_routes` found.

    :ivar sample_bytes: memory that one captured sample takes.
    :ivar model_bytes: memory that one sample takes in a pass through the whole model.
    :ivar proven: whether every parameter that was tried had a gradient that is not zero.
    :ivar gave_up: whether the model does not run on single samples at all.
    """

    routes: dict[str, Route]
    sample_bytes: int
    model_bytes: int
    proven: bool
    gave_up: bool = False


_plans: WeakKeyDictionary[nn.Module, tuple[Any, Plan]] = WeakKeyDictionary()


def plan_routes(
    model: nn.Module, inputs: Sequence[Tensor], params: Mapping[str, Tensor], losses: int
) -> Plan:
    """Find for every parameter the cheapest route that gives autograd's own gradients.

    The answer is kept for the model, until its modules, its parameters or the inputs' shapes
    change; not where a gradient of zero left a route unproven.
    """
    key = (
        tuple((name, id(module), type(module)) for name, module in model.named_modules()),
        tuple((name, id(p), p.shape, p.dtype, p.device) for name, p in params.items()),
        tuple((part.shape[1:], part.dtype) for part in inputs),
        torch.is_autocast_enabled(inputs[0].device.type),
        losses,
    )
    if model not in _plans or _plans[model][0] != key:
        plan = _plan(model, inputs, params, losses)
        if not plan.proven:
            return plan
        _plans[model] = key, plan
    return _plans[model][1]


def _plan(
    model: nn.Module, inputs: Sequence[Tensor], params: Mapping[str, Tensor], losses: int
) -> Plan:
    two = [part[:2] for part in inputs]
    plan, doubts = _attempt(model, two, params, losses)
    if doubts and all(p.dtype == torch.float32 for p in params.values()):
        # In float32 a unit of one of the two samples may lie so near a kink that rounding
        # decides its gradient, which says nothing of the route. In float64 none does.
        exact = _exactly(model, two, params, losses)
        if exact is not None:
            plan = plan._replace(routes=exact.routes)
    for name, route in plan.routes.items():
        if route.kind in ("module", "model"):
            what = route.owners[0][0] if route.owners else "the whole model"
            logger.debug("%s has no closed form here; torch.func runs %s", name, what)
    return plan


def _exactly(
    model: nn.Module, two: Sequence[Tensor], params: Mapping[str, Tensor], losses: int
) -> Plan | None:
    """Plan a copy of the model in float64; None for a model that cannot be that."""
    try:
        double = copy.deepcopy(model).double()
        own = dict(double.named_parameters())
        chosen = {name: own[name] for name in params}
    except Exception as problem:
        logger.debug("%s has no copy in float64: %s", type(model).__name__, problem)
        return None
    parts = [part.double() if part.is_floating_point() else part for part in two]
    plan, _ = _attempt(double, parts, chosen, losses)
    return None if plan.gave_up else plan


def _attempt(
    model: nn.Module, two: Sequence[Tensor], params: Mapping[str, Tensor], losses: int
) -> tuple[Plan, bool]:
    """Plan on two samples, and tell whether a route was given up for its gradients."""
    truth = _two_sample_gradients(model, two, params)
    everything = {name: Route("model") for name in params}
    if truth is None:
        return Plan(everything, 0, 0, True, gave_up=True), False
    candidates = {name: _candidates(model, name, p) for name, p in params.items()}
    routes = {name: next(options) for name, options in candidates.items()}
    loss = BoundLoss(_projection, None, 2)
    doubts = False
    sample_bytes = 0
    while any(route.kind != "model" for route in routes.values()):
        wrong, sample_bytes = _try(model, two, loss, params, routes, truth, losses)
        if sample_bytes < 0:  # samples influence one another
            routes, sample_bytes = everything, 0
        if not wrong or sample_bytes < 0:
            break
        doubts = True
        for name in wrong:
            routes[name] = next(candidates[name], Route("model"))
    reached = [
        any(t is not None and t.any() for t in gradients)
        for gradients in zip(*truth.gradients, strict=True)
    ]
    return Plan(routes, max(sample_bytes, 0), truth.sample_bytes, all(reached)), doubts


def _candidates(model: nn.Module, name: str, parameter: Tensor) -> Iterator[Route]:
    owners = [
        (path, local)
        for path, module in model.named_modules()
        for local, p in module._parameters.items()
        if p is parameter
    ]
    if owners and all(layers.closed_form(model.get_submodule(m), local) for m, local in owners):
        yield Route("layer", owners)
    if parameter.dim() > 1 and parameter.shape[0] == 1 and len(owners) == 1:
        yield Route("expanded")
    path = name.split(".")
    for depth in range(len(path) - 1, 0, -1):
        yield Route("module", [(".".join(path[:depth]), ".".join(path[depth:]))])
    yield Route("model")


def _projection(outputs: Any) -> Tensor:
    """Weigh all outputs with fixed irregular weights: a loss that everything matters to."""
    leaves = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    total = torch.zeros(len(leaves[0]), device=leaves[0].device)
    for leaf in leaves:
        flat = leaf.reshape(len(leaf), -1)
        index = torch.arange(flat.shape[1], device=flat.device, dtype=torch.float64)
        weights = torch.sin(1.7 * index + 0.3).to(flat.dtype)
        total = total + (flat * weights).sum(1)
    return total


class _Activations:
    """Memory that a pass keeps for its backward pass, parameters left out."""

    def __init__(self, model: nn.Module):
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        """A context that counts what autograd saves."""
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda t: t)

    @property
    def bytes(self) -> int:
        """The sum over storages."""
        return sum(self._sizes.values())


class _Truth(NamedTuple):
    """Losses and autograd's gradients of two samples, each run on its own."""

    values: Tensor
    gradients: list[list[Tensor | None]]
    sample_bytes: int


def _two_sample_gradients(
    model: nn.Module, two: Sequence[Tensor], params: Mapping[str, Tensor]
) -> _Truth | None:
    """Run both samples; None if that is not possible."""
    values: list[Tensor] = []
    rows: list[list[Tensor | None]] = []
    activations = _Activations(model)
    try:
        with (
            torch.enable_grad(),
            gradients_for(model, list(params.values())),
            activations.counted(),
        ):
            for i in (0, 1):
                value = _projection(model(*(part[i : i + 1].detach() for part in two)))
                found = torch.autograd.grad(value.sum(), list(params.values()), allow_unused=True)
                values.append(value.detach())
                rows.append(list(found))
    except (RuntimeError, IndexError, TypeError) as problem:
        logger.debug("no closed forms for %s: %s", type(model).__name__, problem)
        return None
    # Two passes, whose storages may or may not be the same; vmap holds about as much again.
    return _Truth(torch.cat(values), rows, 2 * activations.bytes)


def _try(
    model: nn.Module,
    two: Sequence[Tensor],
    loss: BoundLoss,
    params: Mapping[str, Tensor],
    routes: Mapping[str, Route],
    truth: _Truth,
    losses: int,
) -> tuple[list[str], int]:
    """Run the routes on two samples; name the parameters whose gradients come out wrong.

    Also gives the memory in bytes of one captured sample, -1 when the samples influence one
    another.
    """
    activations = _Activations(model)
    tried = [name for name, route in routes.items() if route.kind != "model"]
    try:
        with activations.counted():
            captured = run_routes(model, two, [loss], slice(0, 2), routes)
    except (RuntimeError, IndexError, TypeError, ValueError) as problem:
        logger.debug("%s cannot be captured: %s", type(model).__name__, problem)
        expanded = [name for name in tried if routes[name].kind == "expanded"]
        return expanded or tried, 0
    rows = truth.gradients
    if not _same(captured.values[0], truth.values):
        logger.debug("%s mixes samples: each runs on its own", type(model).__name__)
        return tried, -1
    gradient_bytes = 0
    for calls in captured.calls.values():
        for call in calls:
            for value in (*call.inputs, *call.named.values()):
                if isinstance(value, Tensor):
                    activations.add(value)
            gradient_bytes += sum(g.nbytes for g in call.gradients if g is not None)
    found: dict[str, Tensor] = {}
    names = {name: i for i, name in enumerate(params)}
    bundles: list[Bundle] = []
    for name in tried:
        try:
            bundles += make_bundles(model, {name: params[name]}, routes, captured)
        except RowMismatchError:
            continue
    for bundle in bundles:
        try:
            values = bundle.gradients(0, slice(0, 2)) if bundle.alive(0) else {}
        except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as problem:
            logger.debug("%s: %s", bundle.names, problem)
            continue
        for name, value in values.items():
            value = bundle.layout(name).restore(value)
            if value.shape == (2, *params[name].shape):
                found[name] = value
    wrong = []
    for name in tried:
        wanted = [row[names[name]] for row in rows]
        value, route = found.get(name), routes[name]
        if _agree(value, wanted, params[name].dtype):
            if route.kind == "module":
                calls = captured.calls[model.get_submodule(route.owners[0][0])]
                route.rowwise = rows_of(calls, 2)
        elif not _trusted(model, route, value, wanted, captured):
            wrong.append(name)
    return wrong, (activations.bytes + gradient_bytes * losses) // 2


def _agree(found: Tensor | None, truth: list[Tensor | None], dtype: torch.dtype) -> bool:
    """Whether both samples' gradients are autograd's, up to rounding, and not both zero.

    In float32 a near-tie in max pooling may break differently in another batch, which
    changes gradients by some 1e-3.
    """
    if found is None or not found.any():
        return False
    tolerance = _tolerance(dtype, found.device)
    for row, wanted in zip(found, truth, strict=True):
        wanted = torch.zeros_like(row) if wanted is None else wanted.to(row.dtype)
        difference = torch.linalg.vector_norm(row - wanted)
        if not difference <= tolerance * torch.linalg.vector_norm(wanted):
            return False
    return True


def _same(values: Tensor, alone: Tensor) -> bool:
    """Whether losses in a batch are those of the samples on their own, up to rounding."""
    room = 0.1 * _tolerance(alone.dtype, alone.device)
    return bool(((values - alone).abs() <= room * (alone.abs() + alone.abs().mean())).all())


def _tolerance(dtype: torch.dtype, device: torch.device) -> float:
    if torch.is_autocast_enabled(device.type):
        return 0.1
    return {torch.float64: 1e-6, torch.float32: 5e-3}.get(dtype, 0.1)


def _trusted(
    model: nn.Module,
    route: Route,
    found: Tensor | None,
    truth: list[Tensor | None],
    captured: Captured,
) -> bool:
    """Whether there is no gradient, which shows nothing, but the layer is torch's own.

    So it is with heads that are not used, dead layers, and layers behind a scale of 0.
    """
    if route.kind != "layer" or any(t is not None and t.any() for t in (found, *truth)):
        return False
    owners = [model.get_submodule(path) for path, _ in route.owners]
    unused = all(t is None for t in truth)
    called = all(captured.calls[owner] for owner in owners)
    return (unused or called) and all(layers.plain(owner) for owner in owners)
