"""Networks in TorchScript (``torch.jit.script``, ``torch.jit.trace``), which take no hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_cetl.common.hooks import Values


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a linear one: plain, quantised, or as TorchScript holds it."""
    if isinstance(layer, torch.jit.ScriptModule):
        name = str(getattr(layer, "original_name", ""))
        return name.endswith("Linear") and isinstance(getattr(layer, "weight", None), Tensor)
    if type(layer).__module__.startswith("torch.ao."):
        return hasattr(layer, "in_features") and hasattr(layer, "out_features")
    return isinstance(layer, nn.Linear)


class LinearInput(Values, TorchDispatchMode):
    """Copies of what the product with one linear layer's weight reads, while the block runs.

    No hook reaches a layer inside a scripted network, whose forward pass does not run in Python;
    but every operator passes through this mode. The layer's product is the one with the layer's
    own weight, which is found by its place in memory, also after transposes and casts.

    :param layer: a linear layer with a weight.
    :ivar values: one tensor for each time that the layer ran, ``(rows, in_features)``.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[Tensor] = []
        # Tensors, not addresses alone: memory that were freed would be given to another.
        own = (getattr(layer, name, None) for name in ("weight", "bias"))
        self._all: list[Tensor] = [tensor for tensor in own if isinstance(tensor, Tensor)]
        self._weights = self._all[:1]

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator, and keep its input if it is the layer's product."""
        found = [value for value in args if isinstance(value, Tensor)]
        others = [value for value in found if not _among(value, self._all)]
        reads_weight = any(_among(value, self._weights) for value in found)
        if reads_weight and others:
            self.values.append(others[0].clone())
        result = function(*args, **(kwargs or {}))
        if found and not others and isinstance(result, Tensor):
            (self._weights if reads_weight else self._all).append(result)
            self._all.append(result)
        return result


def _among(value: Tensor, known: list[Tensor]) -> bool:
    return any(_address(value) == _address(tensor) for tensor in known)


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
