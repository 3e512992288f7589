"""What of a network's code and attributes says what it computes, and what is state."""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import inspect
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Set
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_cetl.common.state import own_attributes

#: Packages whose functions and modules are what their names and representations say.
_LIBRARIES = sys.stdlib_module_names | {
    "avalanche", "avalanche_cetl", "numpy", "timm", "torch", "torchvision",
}  # fmt: skip
_FUNCTIONS = (FunctionType, MethodType, BuiltinMethodType)
_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, slice, np.generic)
#: How methods of libraries begin that the user calls to choose a setting; no pass runs them.
_CHOICES = ("_make", "prune", "reset", "set_")
#: Classes of objects that are nothing but named values.
_SPACES = (Namespace, SimpleNamespace)
#: Objects inside objects that are looked into; one may hold itself.
_DEPTH = 4


def _of_library(module: str) -> bool:
    """Return whether a module's name is of one of the libraries."""
    return module.partition(".")[0] in _LIBRARIES


def _is_function(value: Any) -> bool:
    """Return whether a value is a function, a method, or one with some arguments given."""
    if isinstance(value, functools.partial):
        return _is_function(value.func)
    return isinstance(value, _FUNCTIONS)


def _is_setting(value: Any) -> bool:
    """Return whether a value, of a global or an attribute, says what its reader computes."""
    if isinstance(value, Mapping):
        return all(map(_is_setting, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_setting, value))
    if value is None or isinstance(value, (*_PLAIN, Tensor, np.ndarray, nn.Module)):
        return True
    own = callable(value) and not isinstance(value, type)
    return _is_function(value) or (own and not _of_library(type(value).__module__))


def _setting(value: Any, state: Set[str] = frozenset(), depth: int = _DEPTH) -> list[Any]:
    """Return what a value, of a global or an attribute, says of its reader, in a list of one.

    The list is empty where the value may be state. A configuration says its class and settings:
    a dataclass, a namespace, or an object of which every attribute is a setting, a class or a
    device (these two say nothing).

    :param value: anything.
    :param state: names of attributes that are state.
    :param depth: of objects inside objects.
    """
    if _is_setting(value):
        return [value]
    kind, partly = type(value), False
    code: dict[str, Any] = {}
    if depth == 0 or isinstance(value, type):
        return []
    if isinstance(value, Mapping):
        held = dict(value)
    elif isinstance(value, list | tuple):
        held = dict(enumerate(value))
    elif _is_configuration(value):
        code, own = of_class(kind, depth - 1)
        state, partly = state | own, dataclasses.is_dataclass(kind) or issubclass(kind, _SPACES)
        names = getattr(value, "__dict__", getattr(kind, "__dataclass_fields__", ()))
        held = {name: getattr(value, name, None) for name in names if name not in state}
    else:
        return []
    found = {}
    for name, part in held.items():
        if said := _setting(part, state, depth - 1):
            found[name] = said[0]
        elif not (partly or isinstance(part, type | torch.device)):
            return []
    return [[f"{kind.__module__}.{kind.__qualname__}", code, found]]


def _is_configuration(value: Any) -> bool:
    """Return whether an object may hold the settings of what reads it, and nothing else."""
    if dataclasses.is_dataclass(type(value)) or isinstance(value, _SPACES):
        return True
    return hasattr(value, "__dict__") and not _of_library(type(value).__module__)


def _counting(values: Mapping[str, Any], state: Set[str], depth: int = _DEPTH) -> dict[str, Any]:
    """Return those of some named values that are settings."""
    found = {n: _setting(v, state, depth) for n, v in values.items() if n not in state}
    return {name: said[0] for name, said in found.items() if said}


def _are_tensors(values: dict[Any, Any]) -> bool:
    """Return whether all values of a dict are tensors; of none they are."""
    return all(isinstance(value, Tensor) for value in values.values())


def _names(code: CodeType, operation: str) -> set[str]:
    """Return the names that some code, and functions within it, reads or stores."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == operation}
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return found.union(*(_names(one, operation) for one in inner))


def globals_read(function: FunctionType) -> dict[str, Any]:
    """Return what counts of the globals that a function reads; those that it assigns are state."""
    scope = function.__globals__
    if _of_library(str(scope.get("__name__"))):
        return {}
    code = function.__code__
    names = _names(code, "LOAD_GLOBAL") - _names(code, "STORE_GLOBAL")
    read = {name: scope[name] for name in sorted(names & scope.keys())}
    return _counting(read, _names(code, "STORE_ATTR"))


def of_class(kind: type, depth: int = _DEPTH) -> tuple[dict[str, Any], set[str]]:
    """Return functions and plain attributes of a class and its parents, up to a library's.

    :param kind: the class.
    :param depth: of objects inside objects, among its attributes.
    :return: these, without attributes that a method other than the constructor assigns, and the
        names of such attributes: they are state.
    """
    found: dict[str, Any] = {}
    kept: set[str] = set()
    for parent in reversed(kind.__mro__):
        for name, value in vars(parent).items():
            value = getattr(value, "__func__", getattr(value, "fget", value))
            written = isinstance(value, FunctionType)
            library = _of_library(parent.__module__)
            chooses = name in ("__init__", "__post_init__")
            chooses |= library and name.startswith(_CHOICES)
            inner = inspect.unwrap(value) if written else None
            if isinstance(inner, FunctionType) and not chooses and parent is not nn.Module:
                kept |= _names(inner.__code__, "STORE_ATTR")
            if (written or not name.startswith("__")) and not library:
                found[name] = value
    return _counting({name: found[name] for name in sorted(found)}, kept, depth), kept


def _shown(value: Any) -> bool:
    """Return whether an attribute of a library's module counts: a plain one that is no default.

    None and False are what a new version's new attribute is where nobody chose it.
    """
    if isinstance(value, list | tuple):
        return all(part is None or isinstance(part, _PLAIN) or _shown(part) for part in value)
    return isinstance(value, _PLAIN) and value is not False


def _hides(kind: type[nn.Module]) -> bool:
    """Return whether a class of modules has a representation of its own, maybe without parts."""
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    said = next((parent for parent in own if "__repr__" in vars(parent)), nn.Module)
    return not said.__module__.startswith("torch.")


def _said(kind: type[nn.Module]) -> set[str]:
    """Return the names of attributes that a class of modules writes into its representation."""
    found: set[str] = set()
    for parent in kind.__mro__:
        if isinstance(function := vars(parent).get("extra_repr"), FunctionType):
            code = function.__code__
            texts = " ".join(const for const in code.co_consts if isinstance(const, str))
            found |= _names(code, "LOAD_ATTR") | set(re.findall(r"\w+", texts))
            if "super" not in code.co_names:
                break
    return found


def _flat(values: Mapping[str, Any], state: Set[str] = frozenset()) -> dict[str, Any]:
    """Return the named values that are no state, and into which nothing can be put."""
    single = (*_PLAIN, type(None), Tensor, tuple)
    return {
        name: value
        for name, value in values.items()
        if name not in state
        and (_free(value) if _is_function(value) else isinstance(value, single))
        and _is_setting(value)
    }


def _free(function: Any) -> bool:
    """Return whether a function is no method of an object, such as ``list.append``."""
    return isinstance(getattr(function, "__self__", None), ModuleType | type | None)


def _of_hook(hook: Any) -> list[Any]:
    """Return what a hook computes: its code and single values; containers it may fill."""
    if isinstance(hook, functools.partial):
        given = {str(place): value for place, value in enumerate(hook.args)} | hook.keywords
        return [_of_hook(hook.func), _flat(given)]
    function = getattr(hook, "__func__", hook)
    found: list[Any] = []
    if isinstance(function, FunctionType):
        code = function.__code__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        held = {str(place): value for place, value in enumerate(function.__defaults__ or ())}
        held |= dict(zip(code.co_freevars, cells, strict=True)) | (function.__kwdefaults__ or {})
        found += [code, _flat(held, _names(code, "STORE_DEREF")), _flat(globals_read(function))]
    owner = getattr(hook, "__self__", hook)
    if not isinstance(owner, FunctionType | nn.Module):
        methods, state = of_class(type(owner))
        codes = [getattr(method, "__code__", None) for method in methods.values()]
        held = _flat(getattr(owner, "__dict__", {}), state)
        found += [type(owner).__qualname__, codes, held]
    return found


def settings(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield what the representation and the state of a module leave out, with names.

    :param module: the network.
    :param seen: modules that were looked at.
    """
    classes: dict[type, tuple[dict[str, Any], set[str]]] = {}
    for path, part in module.named_modules():
        kind = type(part)
        if id(part) in seen or isinstance(part, torch.jit.ScriptModule):
            continue
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            if not str(getattr(hook, "__module__", "")).startswith("avalanche_cetl."):
                yield f"{path} hook", _of_hook(hook)
        if hasattr(part, "fingerprint"):  # an encoder names its settings itself
            continue
        seen.add(id(part))
        own = dict(sorted(own_attributes(part).items()))
        library, known = _of_library(kind.__module__), kind in classes
        if not known:
            classes[kind] = of_class(kind)
        code, state = classes[kind]
        if _hides(kind):
            yield f"{path} parts", [inner.extra_repr() for inner in part.modules()]
        if not library:
            if not known:
                yield kind.__qualname__, code
            own |= {n: part._buffers[n] for n in sorted(part._non_persistent_buffers_set)}
            # A dict of tensors is a cache, which passes fill.
            caches = {n for n, v in own.items() if isinstance(v, dict) and _are_tensors(v)}
            yield path, _counting(own, caches | state)
        else:
            left = own.keys() - state - _said(kind)
            for name, value in own.items():
                if name in left and not name.startswith("_") and _shown(value):
                    yield f"{path}.{name}", value
                for one in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(one, nn.Module):
                        yield from settings(one, seen)
                    elif _is_function(one):
                        yield f"{path}.{name}", one
