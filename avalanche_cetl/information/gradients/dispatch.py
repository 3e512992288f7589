"""Which route every parameter takes: the first of its candidates that is verified, kept in a cache.

The cache holds until the network's modules, its parameters or the inputs' shapes change. What else
a forward pass depends on (masks, hooks, settings, the weights themselves) does not drop routes, but
has them verified again on the batch that is measured.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from avalanche_cetl.common.caches import copied
from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information.gradients.cache_key import (
    cache_key,
    signature,
    weights_version,
)
from avalanche_cetl.information.gradients.grad_samplers import grad_sampler_of
from avalanche_cetl.information.gradients.loop import Loop
from avalanche_cetl.information.gradients.registry import unmatched
from avalanche_cetl.information.gradients.routes import Route, candidates
from avalanche_cetl.information.gradients.verification import Trial, described
from avalanche_cetl.information.likelihood import BoundLoss

logger = logging.getLogger(__name__)

#: Entries kept for one network: pairs of losses and choices of heads have one each. They hold names
#: and routes only; the bound is for networks whose wrapper or inputs are never twice the same.
_MOST_ENTRIES = 16
#: Routes are verified again in full at every so many uses, even where nothing is seen to have
#: changed: what a forward pass reads from afar is not seen. A call with full verification takes 1.2
#: times as long for CICNN with 64 images, hardly longer with 256, and 2.3 times for 784-256-10
#: Linear layers (one core): at every tenth use that is 13 % at the most.
_USES_PER_VERIFICATION = 10


@dataclass
class Dispatch:
    """The routes of a network's parameters.

    :ivar routes: by parameter name.
    :ivar sample_bytes: memory that one captured sample takes.
    :ivar model_bytes: memory that one sample takes in a pass through the whole model.
    :ivar pairs: whether a single sample has to run as a pair, see :class:`Loop`.
    :ivar proven: whether every parameter that was tried had a gradient that is not zero.
    :ivar signature: of model and losses at the last use.
    :ivar weights: how often the weights were written then.
    :ivar uses: since the last verification in full.
    """

    routes: dict[str, Route]
    pairs: bool
    sample_bytes: int = 0
    model_bytes: int = 0
    proven: bool = False
    signature: int | None = None
    weights: int = 0
    uses: int = 0

    def samples_to_verify(self, model: nn.Module, losses: Sequence[BoundLoss]) -> int:
        """Count a use, and return on how many samples of the batch the routes are verified.

        3 where they are new, or something but the weights has changed, 2 where a gradient was zero
        when they were tried, 1 where training has changed the weights, else 0.
        """
        before = self.signature, self.weights
        self.signature, self.weights = signature(model, losses), weights_version(model)
        self.uses += 1
        if self.signature != before[0] or self.uses >= _USES_PER_VERIFICATION:
            self.uses = 0
            return 3
        if not self.proven:
            return 2
        return int(self.weights != before[1])


#: By a module that holds a measured parameter: it lives as long as the network does, where a
#: wrapper around the network may be made anew for every measurement.
_cache: WeakKeyDictionary[nn.Module, OrderedDict[Any, Dispatch]] = WeakKeyDictionary()
#: Modules whose slow measurement was warned of, and by layer the parameters whose grad sampler was.
_warned: WeakSet[nn.Module] = WeakSet()
_refused: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def dispatch(loop: Loop, inputs: Sequence[Tensor], losses: int) -> Dispatch:
    """Return for every parameter the cheapest route that computes the loop's gradients.

    It is kept, but where a gradient of zero left the route of anything but a layer unproven.

    :param loop: of the model and the parameters, over the inputs.
    :param inputs: tensors ``(N, ...)``.
    :param losses: how many will be measured.
    """
    entries, key = _entries(loop.model, inputs, loop.params, losses)
    if key in entries:
        entries.move_to_end(key)
        return entries[key]
    chosen = _dispatched(loop, [part[:2] for part in inputs], losses)
    if chosen.proven or all(route.kind == "closed_form" for route in chosen.routes.values()):
        entries[key] = chosen
        while len(entries) > _MOST_ENTRIES:
            entries.popitem(last=False)
    return chosen


def forget(loop: Loop, inputs: Sequence[Tensor], losses: int) -> None:
    """Drop kept routes that do not hold any more."""
    entries, key = _entries(loop.model, inputs, loop.params, losses)
    entries.pop(key, None)


def warn_of_the_loop(model: nn.Module, names: Sequence[str], why: str) -> None:
    """Warn, once for each network, that the loop measures it."""
    owner = _owner(model, names)
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


def _owner(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return the module that holds the first parameter, of scripted models too."""
    return dict(model.named_modules())[names[0].rpartition(".")[0]] if names else model


def _entries(
    model: nn.Module, inputs: Sequence[Tensor], params: Mapping[str, Tensor], losses: int
) -> tuple[OrderedDict[Any, Dispatch], Any]:
    owner = _owner(model, list(params))
    key = cache_key(model, inputs, params, losses, wrapped=owner is not model)
    return _cache.setdefault(owner, OrderedDict()), key


def _dispatched(loop: Loop, two: Sequence[Tensor], losses: int) -> Dispatch:
    model, params = loop.model, loop.params
    _warn_of_unmatched(model, params)
    try:
        trial = Trial(model, two, loop, losses)
    except Exception as problem:
        warn_of_the_loop(model, list(params), f"torch.func cannot run it: {described(problem)}")
        return Dispatch({name: Route("loop") for name in params}, loop.pairs)
    routes, given_up = _settle(trial)
    if given_up and all(p.dtype == torch.float32 for p in params.values()):
        # In float32 a unit of one of the two samples may lie so near a kink that rounding
        # decides its gradient, which tells nothing about the route. In float64 none does.
        routes, given_up = _settle_in_float64(trial) or (routes, given_up)
    for name, route, why in given_up:
        if route.kind == "closed_form" and why:
            _warn_of_grad_samplers(model, name, route, why)
    whole = [name for name, route in routes.items() if route.kind == "model"]
    why = trial.whole_model(whole) if whole else ""
    if why:
        routes |= {name: Route("loop") for name in whole}
        warn_of_the_loop(model, whole, f"torch.func cannot run it: {why}")
    for name, route in routes.items():
        if route.kind in ("module", "model"):
            what = route.owners[0][0] if route.owners else "the whole model"
            logger.debug("%s has no closed form here; torch.func runs %s", name, what)
    proven = all(trial.reference.reaches(name) for name in params)
    return Dispatch(routes, loop.pairs, trial.sample_bytes, trial.model_bytes, proven)


#: Routes by parameter; and those that were given up on the way: a parameter, its route, and what
#: was wrong with it (empty where it showed no gradient, or samples influence one another).
_Settled = tuple[dict[str, Route], list[tuple[str, Route, str]]]


def _settle(trial: Trial) -> _Settled:
    """Choose for each parameter its first route that is right, ``"model"`` where none is."""
    left = {name: candidates(trial.model, name, p) for name, p in trial.params.items()}
    open_ = {name: next(routes) for name, routes in left.items()}
    settled: dict[str, Route] = {}
    given_up: list[tuple[str, Route, str]] = []
    while True:
        settled |= {name: route for name, route in open_.items() if route.kind == "model"}
        open_ = {name: route for name, route in open_.items() if name not in settled}
        if not open_:
            return settled, given_up
        for name, right in trial.verdicts(open_).items():
            route = open_.pop(name)
            if right:
                settled[name] = route
                continue
            given_up.append((name, route, trial.problems.get(name, "")))
            open_[name] = Route("model") if trial.mixes_samples else next(left[name])


def _settle_in_float64(trial: Trial) -> _Settled | None:
    """Try a copy of the model in float64; return None for a model that cannot be that."""
    try:
        double = copied(trial.model).double()
        named = dict(double.named_parameters())
        two = [part.double() if part.is_floating_point() else part for part in trial.two]
        loop = Loop(double, two, {name: named[name] for name in trial.params}, ModelState(double))
        exact = Trial(double, two, loop, trial.losses)
    except Exception as problem:
        logger.debug("%s has no copy in float64: %s", type(trial.model).__name__, problem)
        return None
    return _settle(exact)


def _warn_of_unmatched(model: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Warn, once for each layer, of closed forms of parameters that a measured layer has not."""
    measured = {id(p) for p in params.values()}
    for layer in model.modules():
        own = [name for name, p in layer.named_parameters(recurse=False) if id(p) in measured]
        for parameter, sampler in unmatched(layer) if own else ():
            told = _refused.setdefault(layer, set())
            if parameter not in told:
                told.add(parameter)
                logger.warning(
                    "%s is registered for the parameter %r of %s, which has none of that name, "
                    "but %s: it is not used.",
                    getattr(sampler.function, "__qualname__", sampler.function),
                    parameter,
                    type(layer).__name__,
                    ", ".join(own),
                )


def _warn_of_grad_samplers(model: nn.Module, name: str, route: Route, why: str) -> None:
    """Warn, once for each layer and parameter, that a closed form of the user's is not used."""
    for layer, (_, local) in zip(route.modules(model), route.owners, strict=True):
        sampler = grad_sampler_of(layer, local)
        refused = _refused.setdefault(layer, set())
        if sampler is None or sampler.builtin or local in refused:
            continue
        refused.add(local)
        logger.warning(
            "%s, the closed form of %s.%s, is not used for %s: %s.",
            getattr(sampler.function, "__qualname__", sampler.function),
            type(layer).__name__,
            local,
            name,
            why,
        )
