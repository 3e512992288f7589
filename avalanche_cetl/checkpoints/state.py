"""The state of a strategy in the middle of training, as plain data, and put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_cetl.allocation.parameters import named_parameters
from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.evaluators import evaluator_state, set_evaluator_state
from avalanche_cetl.checkpoints.networks import (
    differing,
    grow,
    may_grow_into,
    network_state,
    set_network_state,
)
from avalanche_cetl.checkpoints.optimizers import optimizer_state, set_optimizer_state
from avalanche_cetl.checkpoints.putting import Putter
from avalanche_cetl.checkpoints.random import random_states, set_random_states
from avalanche_cetl.checkpoints.settings import (
    differences,
    packed,
    settings_of,
    settings_of_0_2,
    strategy_settings,
    strategy_settings_of_0_2,
    unpacked,
    without_settings,
)
from avalanche_cetl.checkpoints.stock import check_kind, own_attributes
from avalanche_cetl.checkpoints.taking import Taker
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.common.version import __version__
from avalanche_cetl.training.strategy import CETLStrategy


def capture(
    strategy: SupervisedTemplate, ignore: Sequence[str] = (), *, live: bool = False
) -> dict[str, Any]:
    """Return everything that training changes, as plain data.

    :param strategy: whose state it is.
    :param ignore: class names of plugins that have no state, or of the strategy where its own
        attributes have none.
    :param live: for a state that is put back in this process: data sets and copies of the network
        are in it as they are.
    :raises CheckpointError: when a plugin or metric has state that cannot be kept.
    """
    model, names = strategy.model, _names(strategy.model)
    network = network_state(model)
    return {
        "strategy": type(strategy).__qualname__,
        "written_by": {"avalanche-cetl": __version__, "torch": torch.__version__},
        "model": network["tensors"],
        "network": {name: network[name] for name in ("frozen", "dynamic")},
        "optimizer": optimizer_state(strategy.optimizer, names),
        **_listeners_state(strategy, ignore, live=live),
        "keepers": [plugin.checkpoint_state() for plugin in _keepers(strategy)],
        "stop": strategy._stop_training,
        "clock": dict(vars(strategy.clock)),
        "random": _company(strategy).meet(random_states()),
        "cetl": _cetl_state(strategy, names) if isinstance(strategy, CETLStrategy) else None,
    }


def check_keepable(strategy: SupervisedTemplate, ignore: Sequence[str] = ()) -> None:
    """Raise an error where plugins or metrics have, or will have, state that cannot be kept.

    :param strategy: whose plugins and metrics they are.
    :param ignore: see :func:`capture`.
    :raises CheckpointError: which one, and why.
    """
    for plugin in _plugins(strategy):
        if type(plugin).__name__ not in ignore:
            check_kind(plugin, rounds=True)
    _listeners_state(strategy, ignore)


def _listeners_state(
    strategy: SupervisedTemplate, ignore: Sequence[str], *, live: bool = False
) -> dict[str, Any]:
    """Plugins, metrics, and what the strategy has of its own: what other people wrote."""
    model = strategy.model
    known = [strategy, model, strategy.optimizer, *model.modules()]
    taker = Taker(known, model, live)
    plugins = []
    for plugin in _plugins(strategy):
        name, state = type(plugin).__name__, None
        if name not in ignore:
            check_kind(plugin)
            state = taker.take(plugin, name)
        plugins.append({"type": type(plugin).__qualname__, **_with_settings(plugin, state)})
    own: dict[str, Any] = {"state": None}
    if not isinstance(strategy, CETLStrategy) and type(strategy).__name__ not in ignore:
        name = type(strategy).__name__
        attributes = own_attributes(strategy)
        own = _with_settings(strategy, taker.take_object(strategy, name, attributes))
    return {
        "plugins": plugins,
        "own": own["state"],
        "own_settings": own.get("settings"),
        "evaluator": evaluator_state(strategy.evaluator, taker),
    }


def _with_settings(thing: Any, state: Any) -> dict[str, Any]:
    """The state of a plugin or a strategy, and apart from it the settings."""
    settings = settings_of(thing)
    return {"state": without_settings(state, settings), "settings": packed(settings)}


def restore(
    strategy: SupervisedTemplate,
    state: dict[str, Any],
    ignore: Sequence[str] = (),
    experiences: Sequence[Any] | None = None,
) -> None:
    """Put the state of a strategy that was captured into another one.

    :param strategy: that takes it.
    :param state: as :func:`capture` returned it.
    :param ignore: see :func:`capture`.
    :param experiences: of the benchmark, where the state needs them; see
        :func:`~avalanche_cetl.checkpoints.load_checkpoint`.
    :raises CheckpointError: when it was made with another network, optimiser or other plugins.
    """
    _check(strategy, state, ignore)
    pristine = strategy.model
    if differing(pristine, state["model"]):
        pristine = copy.deepcopy(strategy.model)
        grow(strategy.model, state["model"], experiences or ())
        _check_tensors(strategy.model, state["model"])
    params = dict(strategy.model.named_parameters())
    names = _names(strategy.model)
    set_network_state(strategy.model, {"tensors": state["model"], **state.get("network", {})})
    strategy.make_optimizer()  # the first call of it would throw the moments away
    if isinstance(strategy, CETLStrategy):
        _set_cetl(strategy, state["cetl"], params, names)
    set_optimizer_state(strategy.optimizer, state["optimizer"], params, names)
    putter = Putter(pristine, experiences)
    for plugin, kept in zip(_plugins(strategy), state["plugins"], strict=True):
        if type(plugin).__name__ not in ignore:
            putter.put(plugin, _state_alone(plugin, kept["state"]), type(plugin).__name__)
    if type(strategy).__name__ not in ignore:
        putter.put(strategy, _state_alone(strategy, state.get("own")), type(strategy).__name__)
    for plugin, kept in zip(_keepers(strategy), state["keepers"], strict=False):
        plugin.load_checkpoint_state(kept)
    set_evaluator_state(strategy.evaluator, state["evaluator"], putter)
    strategy._stop_training = bool(state["stop"])
    for counter in vars(strategy.clock):
        setattr(strategy.clock, counter, int(state["clock"][counter]))
    rank = _company(strategy).rank
    if rank < len(state["random"]):  # a process that the saved run did not have draws its own
        set_random_states(state["random"][rank])


def _state_alone(thing: Any, state: Any) -> Any:
    """The state of a plugin or a strategy; version 0.2 kept settings among it."""
    return without_settings(state, settings_of(thing))


def _company(strategy: SupervisedTemplate) -> Processes:
    return (
        strategy.engine.parallel.processes
        if isinstance(strategy, CETLStrategy)
        else Processes(None)
    )


def _names(model: nn.Module) -> dict[int, str]:
    """The names of all parameters that are in a checkpoint: all but those of S."""
    held = model.state_dict()
    return {id(p): name for name, p in model.named_parameters() if name in held}


def _plugins(strategy: SupervisedTemplate) -> list[Any]:
    own = (strategy.evaluator, strategy.clock)
    return [
        plugin
        for plugin in strategy.plugins
        if not any(plugin is one for one in own) and not hasattr(plugin, "checkpoint_state")
    ]


def _keepers(strategy: SupervisedTemplate) -> list[Any]:
    """Plugins that write checkpoints: a run may go on with others, or without."""
    return [plugin for plugin in strategy.plugins if hasattr(plugin, "checkpoint_state")]


# ------------------------------------------------------------------ checks


def _check(strategy: SupervisedTemplate, state: dict[str, Any], ignore: Sequence[str]) -> None:
    kind = type(strategy).__qualname__
    if state["strategy"] != kind:
        raise CheckpointError(
            f"the checkpoint is of a {str(state['strategy'])[:60]}, the strategy is a {kind}."
        )
    mine = [type(plugin).__qualname__ for plugin in _plugins(strategy)]
    its = [kept["type"] for kept in state["plugins"]]
    if mine != its:
        raise CheckpointError(f"the strategy has the plugins {mine}, in the checkpoint {its}.")
    if not may_grow_into(strategy.model, state["model"]):
        _check_tensors(strategy.model, state["model"])
    if isinstance(strategy, CETLStrategy):
        cetl = state["cetl"]
        if cetl["source"] != _source_fingerprint(strategy.model):
            raise CheckpointError(
                "the source network is not the one of the checkpoint: its fingerprint differs."
            )
    other = list(_other_settings(strategy, state, ignore))
    if other:
        raise CheckpointError(
            f"the strategy has other settings than the checkpoint: {'; '.join(other)}. Make it "
            "with the same ones, or assign them before you load (a plugin of yours that changes "
            "one in training names it in varying); learning rates and train_epochs may differ."
        )


def _other_settings(
    strategy: SupervisedTemplate, state: dict[str, Any], ignore: Sequence[str]
) -> Iterator[str]:
    """What differs between the settings of a run and those of a checkpoint, by name."""
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(strategy, CETLStrategy):
        kept, mine = state["cetl"]["settings"], strategy_settings(strategy)
        whole = "gfi" not in kept
        its = unpacked(kept) if whole else strategy_settings_of_0_2(kept, mine)
        yield from differences(mine, its, type(strategy).__name__)
    elif state.get("own") is not None:
        pairs.append((strategy, state["own"], state.get("own_settings")))
    pairs += [
        (plugin, kept["state"], kept.get("settings"))
        for plugin, kept in zip(_plugins(strategy), state["plugins"], strict=True)
    ]
    for thing, kept, settings in pairs:
        name = type(thing).__name__
        if name not in ignore:
            mine = settings_of(thing)
            its = settings_of_0_2(thing, kept, mine) if settings is None else unpacked(settings)
            yield from (f"{name}.{one}" for one in differences(mine, its, name))


def _check_tensors(model: nn.Module, saved: Any) -> None:
    other = differing(model, saved)
    if other:
        remedy = ""
        if may_grow_into(model, saved):
            remedy = (
                " Where it grows in training, give the data: load_checkpoint(strategy, path, "
                "experiences=benchmark.train_stream)."
            )
        raise CheckpointError(
            f"the checkpoint is of another network ({len(other)} tensors differ): "
            f"{'; '.join(_kinds(other))}.{remedy}"
        )


def _kinds(other: list[str]) -> list[str]:
    """One example of each kind of difference."""
    ends = ("is not in the checkpoint", "is not in the model", ")")
    return [
        next(one for one in other if one.endswith(e))
        for e in ends
        if any(one.endswith(e) for one in other)
    ]


_fingerprints: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def _source_fingerprint(model: Any) -> str | None:
    """S's, computed once: it is frozen."""
    source = model.source
    if source is None:
        return None
    if source not in _fingerprints:
        _fingerprints[source] = source.fingerprint()
    return _fingerprints[source]


# ------------------------------------------------------------------ the parts


def _cetl_state(strategy: CETLStrategy, names: dict[int, str]) -> dict[str, Any]:
    return {
        "settings": packed(strategy_settings(strategy)),
        "source": _source_fingerprint(strategy.model),
        "stages": {
            label: optimizer_state(own.optimizer, names)
            for label, own in strategy.optimizers.items()
        },
        "parts": {name: part.state_dict() for name, part in strategy.parts().items()},
    }


def _set_cetl(
    strategy: CETLStrategy,
    state: dict[str, Any],
    params: dict[str, nn.Parameter],
    names: dict[int, str],
) -> None:
    for label, own in strategy.optimizers.items():
        kept = state["stages"][label]
        assert own.optimizer is not None
        if kept is None:
            own.optimizer.state.clear()
        else:
            set_optimizer_state(own.optimizer, kept, params, names)
    for name, part in strategy.parts().items():
        part.load_state_dict(state["parts"][name])
    _check_importances(strategy)
    strategy.allocation.to(strategy.device)


def _check_importances(strategy: CETLStrategy) -> None:
    params = named_parameters(strategy.model)
    for one in strategy.importance.values():
        for name in one.misfits(params):
            raise CheckpointError(f"the importance of {name} has another shape than {name}.")
