"""What checkpoints know of classes: adapters, and which attributes of an object are settings.

A checkpoint holds what training changes, and names the settings that it was made under. The new
run has settings of its own; where one differs, the state would go on under another rule than the
one that made it. So a difference is refused, by name, before anything is restored, and settings
are never restored themselves.

The settings of an object are those arguments of its constructor that can be read from it by their
names and are plain data, as in scikit-learn's estimators. This holds for the classes of this
package and of Avalanche; what classes of other people keep is state, as they may change all of it.
A plugin names in ``varying`` arguments that training changes: they are state too.

A setting is kept as ``[value, default]``, or ``[value]`` where it has to be given: an option that
one of two versions does not have counts as the default of the one that has it.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import (
    GroupBalancedInfiniteDataLoader,
    MultiDatasetDataLoader,
)
from avalanche.logging import BaseLogger
from avalanche.training import plugins as stock
from avalanche.training import storage_policy
from avalanche.training.plugins.generative_replay import TrainGeneratorAfterExpPlugin
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.checkpoints.codec import CheckpointError, equal, is_plain
from avalanche_cetl.training.strategy import CETLStrategy

Settings = dict[str, list[Any]]  #: by name: a value, and its default where it has one

#: Arguments that decide nothing about the result.
_OUTSIDE = frozenset({"self", "device", "num_workers", "pin_memory", "verbose"})
#: Parts of a plugin that have no settings of their own.
_PARTLESS = (nn.Module, AvalancheDataset, DataLoader, MultiDatasetDataLoader, BaseLogger)
_NOTHING = object()


@dataclass(frozen=True)
class Adapter:
    """What checkpoints have to know of a class beside the general rules.

    :ivar state_dict: ``(value) -> state``: plain data and tensors; None: the general rules.
    :ivar load_state_dict: ``(value, state)``, which takes it.
    :ivar refused: why objects of the class cannot be kept.
    :ivar refused_within: why they cannot be kept within an experience.
    :ivar varying: arguments of the constructor that training changes: state, no settings.
    :ivar renamed: where arguments of the constructor are kept under other names.
    :ivar derived: attributes that follow from the others.
    :ivar prepare: ``(value, attributes)``, called before attributes are restored.
    :ivar finish: ``(value)``, called when they are; it makes the derived ones again.
    """

    state_dict: Callable[[Any], Any] | None = None
    load_state_dict: Callable[[Any, Any], None] | None = None
    refused: str = ""
    refused_within: str = ""
    varying: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    derived: tuple[str, ...] = ()
    prepare: Callable[[Any, Mapping[str, Any]], None] | None = None
    finish: Callable[[Any], None] | None = None


def register_state_adapter(
    kind: type, state_dict: Callable[[Any], Any], load_state_dict: Callable[[Any, Any], None]
) -> None:
    """Let checkpoints keep objects of a class, and of those derived from it, by two functions.

    For plugins, metrics and parts of them whose class you cannot give ``state_dict()`` and
    ``load_state_dict(state)``, or whose attributes hold more than plain data. An adapter of a
    class stands for the one that was there before, and for those of its bases.

    :param kind: the class.
    :param state_dict: ``(value) -> state``: what training has changed, as plain data (None,
        numbers, str, list, tuple, set, dict, arrays) and tensors.
    :param load_state_dict: ``(value, state)``: puts it into the object of a new run.
    :raises TypeError: when ``kind`` is no class, or a function is none.
    """
    if not isinstance(kind, type) or not (callable(state_dict) and callable(load_state_dict)):
        raise TypeError("give a class, and the functions state_dict and load_state_dict.")
    _ADAPTERS[kind] = Adapter(state_dict, load_state_dict)


def adapter_of(kind: type) -> Adapter:
    """Return the adapter of a class, or of the nearest of its bases that has one."""
    return next((_ADAPTERS[base] for base in kind.__mro__ if base in _ADAPTERS), Adapter())


def refuse(plugin: Any, within: bool = False) -> None:
    """Raise an error for a plugin whose state cannot be kept, even when it has none yet.

    :param plugin: of a strategy.
    :param within: whether checkpoints are made within an experience too.
    :raises CheckpointError: with the reason.
    """
    adapter, name = adapter_of(type(plugin)), type(plugin).__name__
    why, remedy = adapter.refused, "Train without checkpoints"
    remedy += f", register_state_adapter({name}, ...), or lose its state with ignore=[{name!r}]"
    if within and adapter.refused_within:
        why = adapter.refused_within
        remedy = "Save with save_checkpoint() between two experiences, without CheckpointPlugin"
    if why:
        raise CheckpointError(f"{name} cannot be kept in a checkpoint: {why}. {remedy}.")


# ------------------------------------------------------------------ classes of others


def _make_groups(buffer: Any, attributes: Mapping[str, Any]) -> None:
    """Make the groups of a replay buffer, which it makes in training itself."""
    for key, group in attributes["buffer_groups"].get("entries", ()):
        if isinstance(buffer, storage_policy.ParametricBuffer):
            chosen = buffer.selection_strategy
            made = storage_policy._ParametricSingleBuffer(0, selection_strategy=chosen)
        else:
            made = storage_policy.ReservoirSamplingBuffer(0)
        if isinstance(group, dict) and group.get("type") == type(made).__qualname__:
            buffer.buffer_groups.setdefault(key, made)


def _make_loader(plugin: Any) -> None:
    """Make the loader of A-GEM, which begins anew with each experience."""
    if plugin.buffers:
        plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(
            plugin.buffers,
            batch_size=plugin.sample_size // len(plugin.buffers),
            num_workers=0,
            pin_memory=False,
            persistent_workers=False,
        )
        plugin.buffer_dliter = iter(plugin.buffer_dataloader)


def _load_schedule(scheduler: LRScheduler, state: Mapping[str, Any]) -> None:
    if set(state) - set(scheduler.state_dict()):
        raise CheckpointError("a scheduler has other fields than in the checkpoint.")
    scheduler.load_state_dict(dict(state))


_LOADER = "it holds a data loader that is in the middle of its data"
_STRATEGY = "it holds a strategy of its own"
_MEMORY = Adapter(renamed=(("mem_size", "storage_policy.max_size"),))
_GROUPS = Adapter(varying=("max_size",), prepare=_make_groups)
_ADAPTERS: dict[type, Adapter] = {
    stock.BiCPlugin: Adapter(refused="it makes a layer of its own while it trains"),
    stock.CoPEPlugin: Adapter(refused="it changes the network and the loss when training begins"),
    stock.CWRStarPlugin: Adapter(refused="it keeps weights outside of the network's state_dict()"),
    stock.GenerativeReplayPlugin: Adapter(refused=_STRATEGY),
    TrainGeneratorAfterExpPlugin: Adapter(refused=_STRATEGY),
    stock.MIRPlugin: Adapter(refused=_LOADER),
    stock.RARPlugin: Adapter(refused=_LOADER),
    stock.AGEMPlugin: Adapter(
        refused_within="within an experience its loader is in the middle of its data",
        derived=("buffer_dataloader", "buffer_dliter", "reference_gradients"),
        finish=_make_loader,
    ),
    stock.MASPlugin: Adapter(renamed=(("lambda_reg", "_lambda"),)),
    stock.EarlyStoppingPlugin: Adapter(renamed=(("mode", "operator.__name__"),)),
    stock.MemoryFeCAMUpdate: _MEMORY,
    stock.MemoryNCMUpdate: _MEMORY,
    storage_policy.ReservoirSamplingBuffer: Adapter(varying=("max_size",)),
    storage_policy.BalancedExemplarsBuffer: _GROUPS,
    storage_policy.ParametricBuffer: _GROUPS,
    LRScheduler: Adapter(lambda scheduler: scheduler.state_dict(), _load_schedule),
}


# ------------------------------------------------------------------ settings


def settings_of(thing: Any) -> Settings:
    """Return the settings of a plugin or a strategy by name.

    Those of GFI in a :class:`CETLStrategy` have ``gfi.`` before them, those of the parts of a
    plugin of Avalanche's the part's name.
    """
    if isinstance(thing, CETLStrategy):
        return _strategy_settings(thing)
    found = _own_settings(thing)
    if _package(type(thing)) == "avalanche":
        for name, part in vars(thing).items():
            if _package(type(part)) and not isinstance(part, _PARTLESS):
                found |= {f"{name}.{inner}": one for inner, one in _own_settings(part).items()}
    return found


def without_settings(thing: Any, state: Any) -> Any:
    """Return the state of an object without those attributes that are settings."""
    if not isinstance(state, Mapping) or "attributes" not in state:
        return state
    settings = settings_of(thing)
    own = {name: one for name, one in state["attributes"].items() if name not in settings}
    return {**state, "attributes": own}


def differences(thing: Any, saved: Mapping[str, Any] | None, state: Any = None) -> Iterator[str]:
    """Yield ``name=mine for its`` for every setting that differs.

    :param thing: the plugin or strategy that is to go on.
    :param saved: the settings of the checkpoint; None where it has none.
    :param state: of the thing in the checkpoint. Version 0.2 kept settings in it.
    """
    mine = settings_of(thing)
    its = _settings_of_0_2(thing, state, mine) if saved is None else dict(saved)
    if "gfi" in its:
        its = _strategy_settings_of_0_2(its)
    for name in dict.fromkeys((*mine, *its)):
        here, there = (
            one[name][0] if name in one else (*other[name], _NOTHING)[1]
            for one, other in ((mine, its), (its, mine))
        )
        numbers = isinstance(here, int | float) and isinstance(there, int | float)
        if here != there if numbers else not equal(here, there):
            here, there = ("nothing" if v is _NOTHING else repr(v) for v in (here, there))
            yield f"{name}={here} for {there}"


def _strategy_settings(strategy: CETLStrategy) -> Settings:
    defaults, found = _arguments(CETLStrategy), {}
    for name, value in strategy.settings().items():
        if isinstance(value, GFISettings):
            own = _arguments(GFISettings)
            for part, plain in value.describe().items():
                one = getattr(value, part, plain)  # a setting of 0.2 is in the description alone
                found[f"{name}.{part}"] = _setting(one, own.get(part, plain))
        else:
            found[name] = _setting(value, defaults.get(name, _NOTHING))
    return found


def _own_settings(thing: Any) -> Settings:
    adapter, found = adapter_of(type(thing)), {}
    renamed, varying = dict(adapter.renamed), (*adapter.varying, *getattr(thing, "varying", ()))
    for name, default in _arguments(type(thing)).items():
        value = thing
        for attribute in renamed.get(name, name).split("."):
            value = getattr(value, attribute, _NOTHING)
        if name not in varying and is_plain(_plain(value)):
            found[name] = _setting(value, default)
    return found


def _setting(value: Any, default: Any) -> list[Any]:
    return [_plain(one) for one in (value, default) if one is value or is_plain(_plain(one))]


def _arguments(kind: type) -> dict[str, Any]:
    """Return the arguments of a class's constructor and of its bases', with their defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if _package(base) and "__init__" in vars(base):
            for name, one in inspect.signature(vars(base)["__init__"]).parameters.items():
                if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and name not in _OUTSIDE:
                    found.setdefault(name, _NOTHING if one.default is one.empty else one.default)
    return found


def _package(kind: type) -> str:
    """Return the package of a class, where it is Avalanche or this one."""
    package = kind.__module__.split(".")[0]
    return package if package in ("avalanche", "avalanche_cetl") else ""


def _plain(value: Any) -> Any:
    """Return Python's own numbers for numpy's, the text of a dataclass such as Quantile.

    A checkpoint has numbers of Python, so that those of numpy would differ from themselves.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return repr(value) if is_dataclass(value) and not isinstance(value, type) else value


def _settings_of_0_2(thing: Any, state: Any, mine: Settings) -> Settings:
    """Return what the state of a plugin tells of its settings: version 0.2 kept them in it."""
    renamed = dict(adapter_of(type(thing)).renamed)

    def value_of(state: Any, name: str, depth: int) -> Any:
        whole = isinstance(state, Mapping) and state.get("how") == "object"
        attributes = state["attributes"] if depth and whole else {}
        if attributes.get(name, {}).get("how") == "plain":
            return attributes[name]["value"]
        values = (value_of(part, name, depth - 1) for part in attributes.values())
        return next((value for value in values if value is not _NOTHING), _NOTHING)

    found = {n: value_of(state, renamed.get(n, n).rsplit(".", 1)[-1], 3) for n in mine}
    # What is not there cannot be compared.
    return {n: mine[n] if value is _NOTHING else [value] for n, value in found.items()}


def _strategy_settings_of_0_2(saved: Mapping[str, Any]) -> Settings:
    """Return the settings of a CETLStrategy as version 0.2 wrote them: GFI's as one text."""
    found = {name: [value] for name, value in saved.items() if name != "gfi"}
    for keyword in ast.parse(str(saved["gfi"]), mode="eval").body.keywords:  # type: ignore[attr-defined]
        value, text = keyword.value, ast.unparse(keyword.value)
        found[f"gfi.{keyword.arg}"] = [
            text if isinstance(value, ast.Call) else ast.literal_eval(value)
        ]
    return found
