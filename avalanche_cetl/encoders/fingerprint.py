"""Fingerprints: what an encoder, a transform or an image is, as a hash of its content."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
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


#: Whether fingerprints are those of version 0.2, which saw less of functions and modules.
_OF_0_2: ContextVar[bool] = ContextVar("of version 0.2", default=False)


@contextmanager
def of_version_0_2() -> Iterator[None]:
    """Make fingerprints as version 0.2 did, to compare them with those in its checkpoints."""
    token = _OF_0_2.set(True)
    try:
        yield
    finally:
        _OF_0_2.reset(token)


class Fingerprint:
    """A SHA-256 over the content of tensors, modules, functions and plain values."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._followed: set[FunctionType] = set()
        self._of_0_2 = _OF_0_2.get()

    def text(self, value: str) -> Fingerprint:
        """Add a string."""
        raw = value.encode()
        self._digest.update(len(raw).to_bytes(8, "little") + raw)
        return self

    def tensor(self, value: Tensor) -> Fingerprint:
        """Add a tensor: dtype, shape and bytes; if it is quantised, of its dequantised values."""
        self.text(f"{value.dtype} {tuple(value.shape)}")
        if value.is_quantized:
            value = value.dequantize()
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        self._digest.update(raw.numpy().data)
        return self

    def module(self, value: nn.Module) -> Fingerprint:
        """Add a module: structure (its representation), parameters and buffers.

        Quantised layers add their packed weights, which are no tensors of their own. Scripted
        modules add their code, whose constants may be the weights (``torch.jit.freeze``). Modules
        of classes outside of torch, torchvision and timm add the code of their class and their
        plain attributes, but for those that a method other than the constructor assigns: they are
        what a pass keeps. Of modules of these packages functions that they were given count.
        """
        self._module(value, set())
        return self

    def _module(self, value: nn.Module, seen: set[int]) -> None:
        self.text(f"{type(value).__qualname__} {_plain(value)}")
        for name, tensor in value.state_dict().items():
            self.text(name)
            if isinstance(tensor, Tensor):
                self.tensor(tensor)
            elif tensor is not None:
                self.value(tensor)
        for part in value.modules():
            if isinstance(part, torch.jit.ScriptModule) and hasattr(part, "forward"):
                code, constants = part.code_with_constants
                self.text(code).value(constants.const_mapping)
        for name, setting in () if self._of_0_2 else _settings(value, set()):
            self.text(name)
            self._value(setting, seen | {id(value)})

    def value(self, value: Any) -> Fingerprint:
        """Add anything: a function with its code, an object with its attributes.

        A function outside of torch, torchvision and timm adds the functions, modules and plain
        values among the globals that it reads; a callable object the code of its class.
        An object that has a method ``fingerprint()`` adds what that returns.
        """
        self._value(value, set())
        return self

    def _value(self, value: Any, seen: set[int]) -> None:
        own = getattr(value, "fingerprint", None)
        if id(value) in seen:
            self.text("again")
        elif callable(own) and not isinstance(value, type):
            self.text(str(own()))
        elif isinstance(value, nn.Module):
            self._module(value, seen)
        elif isinstance(value, Tensor):
            self.tensor(value)
        elif isinstance(value, np.ndarray):
            self.tensor(torch.from_numpy(np.ascontiguousarray(value)))
        elif isinstance(value, Mapping):
            for key in value:
                self.text(str(key))
                self._value(value[key], seen | {id(value)})
        elif isinstance(value, list | tuple | set | frozenset):
            for part in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
                self._value(part, seen | {id(value)})
            self.text(f"{type(value).__name__} {len(value)}")
        elif isinstance(value, functools.partial):
            self._value([value.func, value.args, value.keywords], seen | {id(value)})
        elif isinstance(value, MethodType) and not self._of_0_2:
            self._value([value.__func__, value.__self__], seen | {id(value)})
        elif (
            isinstance(value, BuiltinMethodType)
            and not isinstance(value.__self__, ModuleType | type | None)
            and not self._of_0_2
        ):
            self._value([value.__name__, value.__self__], seen | {id(value)})
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            self.text(f"{value.__module__}.{value.__qualname__}")
            self._value([value.__code__, value.__defaults__, cells], seen | {id(value)})
            if value not in self._followed and not self._of_0_2:
                self._followed.add(value)
                if value.__kwdefaults__:
                    self._value(value.__kwdefaults__, seen | {id(value)})
                if read := _globals(value):
                    self._value(read, seen | {id(value)})
        elif isinstance(value, CodeType):
            self._digest.update(value.co_code)
            self._value([value.co_names, value.co_consts], seen | {id(value)})
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            self.text(f"{type(value).__module__}.{type(value).__qualname__}")
            self._value(vars(value), seen | {id(value)})
            if callable(value) and not self._of_0_2 and (code := _of_class(type(value))[0]):
                self._value(code, seen | {id(value)})
        else:
            self.text(_plain(value))

    def hexdigest(self) -> str:
        """Return the hash, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def _plain(value: Any) -> str:
    """Return a value's representation, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


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


def _are_tensors(values: dict[Any, Any]) -> bool:
    """Return whether all values of a dict are tensors; of none they are."""
    return all(isinstance(value, Tensor) for value in values.values())


def _names(code: CodeType, operation: str) -> set[str]:
    """Return the names that some code, and functions within it, reads or stores."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == operation}
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return found.union(*(_names(one, operation) for one in inner))


def _globals(function: FunctionType) -> dict[str, Any]:
    """Return what counts of the globals that a function reads; those that it assigns are state."""
    scope = function.__globals__
    if _of_library(str(scope.get("__name__"))):
        return {}
    code = function.__code__
    names = _names(code, "LOAD_GLOBAL") - _names(code, "STORE_GLOBAL")
    return {n: scope[n] for n in sorted(names & scope.keys()) if _is_setting(scope[n])}


def _of_class(kind: type) -> tuple[dict[str, Any], set[str]]:
    """Return functions and plain attributes of a class and its parents, up to a library's.

    :return: these, without attributes that a method other than the constructor assigns, and the
        names of such attributes: they are state.
    """
    found: dict[str, Any] = {}
    kept: set[str] = set()
    for parent in reversed(kind.__mro__):
        for name, value in vars(parent).items():
            value = getattr(value, "__func__", getattr(value, "fget", value))
            written = isinstance(value, FunctionType)
            if written and name != "__init__" and parent is not nn.Module:
                kept |= _names(inspect.unwrap(value).__code__, "STORE_ATTR")
            counts = (written or not name.startswith("__")) and _is_setting(value)
            if counts and not _of_library(parent.__module__):
                found[name] = value
    return {name: found[name] for name in sorted(found.keys() - kept)}, kept


def _settings(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield what the representation and the state of a module leave out, with names.

    :param seen: modules that were looked at.
    """
    state: dict[type, set[str]] = {}
    for path, part in module.named_modules():
        kind = type(part)
        speaks = hasattr(part, "fingerprint")  # an encoder names its settings itself
        if id(part) in seen or speaks or isinstance(part, torch.jit.ScriptModule):
            continue
        seen.add(id(part))
        own = dict(sorted(own_attributes(part).items()))
        if not _of_library(kind.__module__):
            if kind not in state:
                code, state[kind] = _of_class(kind)
                yield kind.__qualname__, code
            own |= {n: part._buffers[n] for n in sorted(part._non_persistent_buffers_set)}
            # A dict of tensors is a cache, which passes fill.
            kept = {n for n, v in own.items() if isinstance(v, dict) and _are_tensors(v)}
            kept |= state[kind]
            yield path, {n: v for n, v in own.items() if n not in kept and _is_setting(v)}
        else:
            for name, value in own.items():
                for one in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(one, nn.Module):
                        yield from _settings(one, seen)
                    elif _is_function(one):
                        yield f"{path}.{name}", one
