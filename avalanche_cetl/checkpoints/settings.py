"""Settings: what was chosen when a strategy and its plugins were made.

A checkpoint holds what training changes, and names the settings that it was made under. The new
run has settings of its own; where one differs, the state would go on under another rule than the
one that made it. So a difference is refused, by name, before anything is put back, and settings
are never put back themselves.

The settings of an object are those arguments of its constructor that can be read from it by their
names and are plain data, as in scikit-learn's estimators. This holds for the classes of this
package and of Avalanche; what classes of other people keep is state, as they may change all of it.
A plugin names in ``varying`` arguments that training changes: they are state too.

An option that one of two versions does not have counts as what that version did: the default of
the one that has it, or what :data:`EARLIER` says.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.logging import BaseLogger
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    MASPlugin,
    MemoryFeCAMUpdate,
    MemoryNCMUpdate,
)
from avalanche.training.storage_policy import (
    BalancedExemplarsBuffer,
    ParametricBuffer,
    ReservoirSamplingBuffer,
)
from torch import nn
from torch.utils.data import DataLoader

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.checkpoints.plain import equal, is_plain
from avalanche_cetl.training.strategy import CETLStrategy

#: What earlier versions did where an option was not there yet, by class and option, when that is
#: not the option's default.
EARLIER: dict[str, Any] = {}
#: Arguments that decide nothing about the result.
_OUTSIDE = frozenset({"self", "device", "num_workers", "pin_memory", "verbose"})
#: Arguments of Avalanche's classes that training changes: they are state.
_VARYING: dict[type, frozenset[str]] = {
    kind: frozenset({"max_size"})
    for kind in (ReservoirSamplingBuffer, BalancedExemplarsBuffer, ParametricBuffer)
}
#: Where Avalanche's plugins keep arguments that they have under another name.
_KEPT_AS: dict[type, dict[str, str]] = {
    MASPlugin: {"lambda_reg": "_lambda"},
    EarlyStoppingPlugin: {"mode": "operator.__name__"},
    MemoryFeCAMUpdate: {"mem_size": "storage_policy.max_size"},
    MemoryNCMUpdate: {"mem_size": "storage_policy.max_size"},
}
#: Parts of a plugin that have no settings of their own.
_PARTLESS = (nn.Module, AvalancheDataset, DataLoader, MultiDatasetDataLoader, BaseLogger)


class _Unknown:
    def __repr__(self) -> str:
        return "nothing"


UNKNOWN = _Unknown()


class Setting(NamedTuple):
    """A setting as a run has it.

    :ivar value: plain data.
    :ivar default: what it is where it is not given; ``UNKNOWN`` where it has to be given.
    """

    value: Any
    default: Any = UNKNOWN


def settings_of(thing: Any) -> dict[str, Setting]:
    """Return the settings of a plugin, or of a strategy that is not CETL, by name."""
    return dict(_settings(thing, 2))


def without_settings(state: Any, settings: Mapping[str, Setting]) -> Any:
    """Return the state of an object without those attributes that are settings."""
    if not isinstance(state, Mapping) or "attributes" not in state:
        return state
    own = {n: one for n, one in state["attributes"].items() if n not in settings}
    return {**state, "attributes": own}


def strategy_settings(strategy: CETLStrategy) -> dict[str, Setting]:
    """Return the settings of a CETLStrategy by name; those of GFI with ``gfi.`` before it."""
    own, gfi = _arguments(CETLStrategy), _arguments(GFISettings)
    found = {}
    for name, value in strategy.settings().items():
        if isinstance(value, GFISettings):
            for part in value.describe():
                one = _plain(getattr(value, part))
                found[f"{name}.{part}"] = Setting(one, gfi[part])
        else:
            found[name] = Setting(_plain(value), own.get(name, UNKNOWN))
    return found


def packed(settings: Mapping[str, Setting]) -> dict[str, list[Any]]:
    """Return settings as a checkpoint holds them: ``[value, default]``, or ``[value]``."""
    return {
        name: [one.value] if one.default is UNKNOWN or not is_plain(one.default) else list(one)
        for name, one in settings.items()
    }


def unpacked(kept: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the settings that a checkpoint holds."""
    return {str(name): Setting(*one) for name, one in kept.items()}


def differences(
    mine: Mapping[str, Setting], its: Mapping[str, Setting], kind: str
) -> Iterator[str]:
    """Yield ``name=mine for its`` for every setting that differs.

    :param mine: of the run that is to go on.
    :param its: of the checkpoint.
    :param kind: name of the class that has them.
    """
    for name in (*mine, *(name for name in its if name not in mine)):
        if name in mine and name in its:
            here, there = mine[name].value, its[name].value
        elif name in mine:
            here, there = mine[name].value, EARLIER.get(f"{kind}.{name}", mine[name].default)
        else:
            here, there = its[name].default, its[name].value
        if not _agree(here, there):
            yield f"{name}={here!r} for {there!r}"


def settings_of_0_2(thing: Any, state: Any, mine: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return what the state of a plugin tells of its settings, where a file has none of their own.

    Version 0.2 kept settings among the state, some of them in parts of the plugin.

    :param thing: the plugin of the new run.
    :param state: what the file has of it.
    :param mine: its settings, which are looked for.
    """
    found = {}
    for name, one in mine.items():
        value = _kept(state, _kept_as(thing, name).rsplit(".", 1)[-1], 3)
        # What is not there cannot be compared.
        found[name] = one if value is UNKNOWN else Setting(value, one.default)
    return found


def strategy_settings_of_0_2(
    kept: Mapping[str, Any], mine: Mapping[str, Setting]
) -> dict[str, Setting]:
    """Return the settings of a CETLStrategy as version 0.2 wrote them: GFI's as one text."""
    found = {}
    for name, value in kept.items():
        if name != "gfi":
            found[name] = Setting(value, UNKNOWN)
            continue
        call = ast.parse(str(value), mode="eval").body
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            part, text = f"gfi.{keyword.arg}", keyword.value
            one = ast.literal_eval(text) if not isinstance(text, ast.Call) else ast.unparse(text)
            found[part] = Setting(one, mine[part].default if part in mine else UNKNOWN)
    # The diagonal basis had no name then, nor a rank.
    found.setdefault("gfi.basis", Setting(GFISettings.basis, GFISettings.basis))
    if "gfi.basis" not in mine and found["gfi.basis"].value == GFISettings.basis:
        del found["gfi.basis"]
    return found


def _settings(thing: Any, depth: int) -> Iterator[tuple[str, Setting]]:
    varying = getattr(thing, "varying", ())
    for name, default in _arguments(type(thing)).items():
        value = _plain(_read(thing, _kept_as(thing, name)))
        if name not in varying and is_plain(value):
            yield name, Setting(value, _plain(default))
    if depth > 1 and _ours(type(thing)) == "avalanche":
        for name, part in vars(thing).items():
            if _ours(type(part)) and not isinstance(part, _PARTLESS):
                yield from ((f"{name}.{inner}", one) for inner, one in _settings(part, depth - 1))


def _kept_as(thing: Any, name: str) -> str:
    """Where an object keeps an argument: an attribute, or one of an attribute's."""
    for kind in type(thing).__mro__:
        if name in _KEPT_AS.get(kind, ()):
            return _KEPT_AS[kind][name]
    return name


def _read(thing: Any, path: str) -> Any:
    for name in path.split("."):
        thing = getattr(thing, name, UNKNOWN)
    return thing


def _arguments(kind: type) -> dict[str, Any]:
    """The arguments of a class's constructor and of its bases', with their defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if not _ours(base) or "__init__" not in vars(base):
            continue
        for name, one in inspect.signature(vars(base)["__init__"]).parameters.items():
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or name in _OUTSIDE:
                continue
            found.setdefault(name, UNKNOWN if one.default is one.empty else one.default)
    varying = frozenset().union(*(_VARYING.get(base, frozenset()) for base in kind.__mro__))
    return {name: default for name, default in found.items() if name not in varying}


def _ours(kind: type) -> str:
    """The package of a class, where it is Avalanche or this one."""
    package = kind.__module__.split(".")[0]
    return package if package in ("avalanche", "avalanche_cetl") else ""


def _plain(value: Any) -> Any:
    """Python's own numbers for numpy's, the text of a dataclass such as Quantile; else the value.

    A checkpoint has numbers of Python, so that those of numpy would differ from themselves.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return repr(value) if is_dataclass(value) and not isinstance(value, type) else value


def _kept(state: Any, name: str, depth: int) -> Any:
    """The plain value of an attribute in the state of an object, or of a part of it."""
    if not isinstance(state, Mapping) or state.get("how") != "object" or not depth:
        return UNKNOWN
    attributes = state["attributes"]
    if name in attributes and attributes[name].get("how") == "plain":
        return attributes[name]["value"]
    for part in attributes.values():
        value = _kept(part, name, depth - 1)
        if value is not UNKNOWN:
            return value
    return UNKNOWN


def _agree(one: Any, other: Any) -> bool:
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return one == other
    return bool(equal(one, other))
