"""Which way to a parameter's per-sample gradients is right, and cheapest.

In this order: a closed form of its layer; one copy per sample, for parameters of shape
``(1, ...)`` such as class tokens; torch.func on the smallest module around it; torch.func on the
whole model; and last a plain backward pass a sample, which is right for whatever trains. Whether
a route is right for a parameter is not guessed but tried, on two samples against plain autograd,
so that shared layers, tied weights, custom forward passes and layers that mix samples find the
route that holds for them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from avalanche_cetl.common.caches import copied
from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information.gradients.forms import registrations
from avalanche_cetl.information.gradients.layers import form_of
from avalanche_cetl.information.gradients.plain import PlainGradients
from avalanche_cetl.information.gradients.routes import Route
from avalanche_cetl.information.gradients.signature import signature, weights_version
from avalanche_cetl.information.gradients.trial import Trial, Verdict, described
from avalanche_cetl.information.likelihood import BoundLoss

logger = logging.getLogger(__name__)

#: Plans kept for one network: pairs of losses and choices of heads have a plan each. A plan holds
#: names and routes only; the bound is for networks whose wrapper or inputs are never twice the
#: same.
_MOST_PLANS = 16
#: A kept plan is proven again in full at every so many uses, even where nothing is seen to have
#: changed: what a forward pass reads from afar is not seen. A call with a full proof takes 1.2
#: times as long for CICNN with 64 images, hardly longer with 256, and 2.3 times for 784-256-10
#: Linear layers (one core): at every tenth use that is 13 % at the most.
_USES_PER_PROOF = 10


class Due(Enum):
    """Which proof a plan needs before it is used."""

    FULL = "all losses, three samples"  #: it is new, or something but the weights has changed
    AGAIN = "all losses, two samples"  #: a gradient was zero when it was tried
    QUICK = "one loss, one sample"  #: training has changed the weights
    NONE = "none"


@dataclass
class Plan:
    """What :func:`plan_routes` found.

    :ivar sample_bytes: memory that one captured sample takes.
    :ivar model_bytes: memory that one sample takes in a pass through the whole model.
    :ivar proven: whether every parameter that was tried had a gradient that is not zero.
    :ivar pairs: whether a single sample has to run as a pair, see :class:`PlainGradients`.
    :ivar signature: of model and losses when the plan was last proven.
    :ivar weights: how often the weights were written then.
    :ivar uses: since then.
    """

    routes: dict[str, Route]
    sample_bytes: int
    model_bytes: int
    proven: bool
    pairs: bool
    signature: int | None = None
    weights: int = 0
    uses: int = 0

    def due(self, model: nn.Module, losses: Sequence[BoundLoss]) -> Due:
        """Count a use, and return which proof the plan needs."""
        now, weights = signature(model, losses), weights_version(model)
        before = self.signature, self.weights
        self.signature, self.weights = now, weights
        self.uses += 1
        if now != before[0] or self.uses >= _USES_PER_PROOF:
            self.uses = 0
            return Due.FULL
        if not self.proven:
            return Due.AGAIN
        return Due.NONE if weights == before[1] else Due.QUICK


#: Plans by a module that holds a measured parameter: it lives as long as the network does, where
#: a wrapper around the network may be made anew for every measurement.
_plans: WeakKeyDictionary[nn.Module, OrderedDict[Any, Plan]] = WeakKeyDictionary()
#: Modules whose slow measurement was warned of, and by layer the parameters whose form was.
_warned: WeakSet[nn.Module] = WeakSet()
_refused: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
#: Routes by parameter; and those that were given up: a parameter, its route and the problem.
_Settled = tuple[dict[str, Route], list[tuple[str, Route, str]]]


def plan_routes(
    model: nn.Module,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor],
    losses: Sequence[BoundLoss],
    plain: PlainGradients,
) -> tuple[Plan, Due]:
    """Return for every parameter the cheapest route that computes autograd's own gradients.

    The answer is kept until the network's modules, its parameters or the inputs' shapes change;
    not where a gradient of zero left the route of anything but a layer unproven. It has to be
    proven with :class:`~avalanche_cetl.information.gradients.proof.Proof` when it is new and where
    anything else has changed (masks, hooks, settings; see
    :mod:`~avalanche_cetl.information.gradients.signature`).

    :param model: that will be run.
    :param inputs: tensors ``(N, ...)``.
    :param params: to measure, by name.
    :param losses: those that will be measured.
    :param plain: of the same model, inputs and parameters.
    :return: the plan, and the proof that it needs.
    """
    kept, key = _kept(model, inputs, params, len(losses))
    if key in kept:
        kept.move_to_end(key)
        return kept[key], kept[key].due(model, losses)
    plan = _plan(model, inputs, params, len(losses), plain)
    if plan.proven or all(route.kind == "layer" for route in plan.routes.values()):
        kept[key] = plan
        while len(kept) > _MOST_PLANS:
            kept.popitem(last=False)
    return plan, plan.due(model, losses)


def forget_plan(
    model: nn.Module, inputs: Sequence[Tensor], params: Mapping[str, Tensor], losses: int
) -> None:
    """Drop a kept plan that does not hold any more."""
    kept, key = _kept(model, inputs, params, losses)
    kept.pop(key, None)


def _kept(
    model: nn.Module, inputs: Sequence[Tensor], params: Mapping[str, Tensor], losses: int
) -> tuple[OrderedDict[Any, Plan], Any]:
    first = next(iter(params), "")
    owner = dict(model.named_modules())[first.rpartition(".")[0]]  # of scripted models too
    settings = {n: v for n, v in vars(model).items() if _plain(v)} if owner is not model else {}
    key = (
        type(model),
        tuple(sorted(settings.items())),
        tuple((name, id(module), type(module)) for name, module in model.named_modules() if name),
        tuple((name, id(p), p.shape, p.dtype, p.device) for name, p in params.items()),
        tuple((part.shape[1:], part.dtype) for part in inputs),
        torch.is_autocast_enabled(inputs[0].device.type),
        losses,
        registrations(),
    )
    return _plans.setdefault(owner, OrderedDict()), key


def _plain(value: Any) -> bool:
    """Return whether a wrapper is made with this choice: names of outputs, tasks of heads."""
    return isinstance(value, tuple) and all(isinstance(part, str | int) for part in value)


def _plan(
    model: nn.Module,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor],
    losses: int,
    plain: PlainGradients,
) -> Plan:
    two = [part[:2] for part in inputs]
    try:
        trial = Trial(model, two, params, plain, losses)
    except Exception as problem:
        warn_of_plain_autograd(
            model, list(params), f"torch.func cannot run it: {described(problem)}"
        )
        return Plan({name: Route("plain") for name in params}, 0, 0, False, plain.pairs)
    routes, given_up = _settle(trial)
    if given_up and all(p.dtype == torch.float32 for p in params.values()):
        # In float32 a unit of one of the two samples may lie so near a kink that rounding
        # decides its gradient, which tells nothing about the route. In float64 none does.
        routes, given_up = _exactly(trial) or (routes, given_up)
    for name, route, why in given_up:
        if route.kind == "layer" and why:
            _warn_of_forms(model, name, route, why)
    whole = [name for name, route in routes.items() if route.kind == "model"]
    if whole:
        right, why = trial.whole_model(whole)
        if not right:
            routes |= {name: Route("plain") for name in whole}
            warn_of_plain_autograd(model, whole, f"torch.func cannot run it: {why}")
    for name, route in routes.items():
        if route.kind in ("module", "model"):
            what = route.owners[0][0] if route.owners else "the whole model"
            logger.debug("%s has no closed form here; torch.func runs %s", name, what)
    proven = all(trial.truth.reaches(name) for name in params)
    return Plan(routes, trial.sample_bytes, trial.truth.sample_bytes, proven, plain.pairs)


def warn_of_plain_autograd(model: nn.Module, names: Sequence[str], why: str) -> None:
    """Warn, once for each network, that plain autograd measures it."""
    owner = dict(model.named_modules())[names[0].rpartition(".")[0]] if names else model
    if owner in _warned:
        return
    _warned.add(owner)
    logger.warning(
        "%s: the Fisher information of %s%s takes a backward pass for each sample: slow (%s).",
        type(model).__name__,
        ", ".join(names[:3]),
        "" if len(names) <= 3 else f" and {len(names) - 3} more parameters",
        why,
    )


def _warn_of_forms(model: nn.Module, name: str, route: Route, why: str) -> None:
    """Warn, once for each layer and parameter, that a closed form of the user's is not used."""
    for path, local in route.owners:
        layer = model.get_submodule(path)
        form = form_of(layer, local)
        if form is None or form.builtin or local in _refused.setdefault(layer, set()):
            continue
        _refused[layer].add(local)
        logger.warning(
            "%s, the closed form of %s.%s, is not used for %s: %s.",
            getattr(form.rule, "__qualname__", form.rule),
            type(layer).__name__,
            local,
            name,
            why,
        )


def _exactly(trial: Trial) -> _Settled | None:
    """Plan a copy of the model in float64; return None for a model that cannot be that."""
    try:
        double = copied(trial.model).double()
        own = dict(double.named_parameters())
        chosen = {name: own[name] for name in trial.params}
        two = [part.double() if part.is_floating_point() else part for part in trial.two]
        plain = PlainGradients(double, two, chosen, ModelState(double))
        exact = Trial(double, two, chosen, plain, trial.losses)
    except Exception as problem:
        logger.debug("%s has no copy in float64: %s", type(trial.model).__name__, problem)
        return None
    return _settle(exact)


def _settle(trial: Trial) -> _Settled:
    """Choose for each parameter its first route that is right, ``"model"`` where none is.

    :return: the routes, and those that were given up on the way: a parameter, its route, and what
        was wrong with it (empty where it showed no gradient, or samples influence one another).
    """
    candidates = {name: _candidates(trial.model, name, p) for name, p in trial.params.items()}
    open_ = {name: next(options) for name, options in candidates.items()}
    settled: dict[str, Route] = {}
    given_up: list[tuple[str, Route, str]] = []
    while True:
        settled |= {name: route for name, route in open_.items() if route.kind == "model"}
        open_ = {name: route for name, route in open_.items() if name not in settled}
        if not open_:
            return settled, given_up
        for name, verdict in trial.verdicts(open_).items():
            route = open_.pop(name)
            if verdict.accepted:
                settled[name] = route
                continue
            mixes = verdict is Verdict.MIXES_SAMPLES
            given_up.append((name, route, trial.problems.get(name, "")))
            open_[name] = Route("model") if mixes else next(candidates[name])


def _candidates(model: nn.Module, name: str, parameter: Tensor) -> Iterator[Route]:
    """Iterate over the routes that may be right for a parameter, the cheapest first.

    The last of them is always ``"model"``.

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
    if real and all(form_of(model.get_submodule(path), local) for path, local in owners):
        yield Route("layer", owners)
    if real and parameter.dim() > 1 and parameter.shape[0] == 1 and len(owners) == 1:
        yield Route("expanded")
    path = name.split(".")
    for depth in range(len(path) - 1, 0, -1):
        module = model.get_submodule(".".join(path[:depth]))
        if type(module).forward is not _NO_FORWARD:
            yield Route("module", [(".".join(path[:depth]), ".".join(path[depth:]))])
    yield Route("model")


#: What a list or dict of modules has in the place of a forward pass: it is never called.
_NO_FORWARD = nn.ModuleList.forward
