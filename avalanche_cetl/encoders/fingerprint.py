"""Fingerprints: what an encoder, a transform or an image is, as a hash of its content."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Fingerprint:
    """A SHA-256 over the content of tensors, modules, functions and plain values."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

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
        modules add their code, whose constants may be the weights (``torch.jit.freeze``).
        """
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
        return self

    def value(self, value: Any) -> Fingerprint:
        """Add anything: a function with its code, an object with its attributes.

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
            self.module(value)
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
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            self.text(f"{value.__module__}.{value.__qualname__}")
            self._value([value.__code__, value.__defaults__, cells], seen | {id(value)})
        elif isinstance(value, CodeType):
            self._digest.update(value.co_code)
            self._value([value.co_names, value.co_consts], seen | {id(value)})
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            self.text(f"{type(value).__module__}.{type(value).__qualname__}")
            self._value(vars(value), seen | {id(value)})
        else:
            self.text(_plain(value))

    def hexdigest(self) -> str:
        """Return the hash, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def _plain(value: Any) -> str:
    """Return a value's representation, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
