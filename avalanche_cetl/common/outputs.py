"""What a layer gives, or reads, in a forward pass: kept as it was at that moment."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Kept:
    """Keep a layer's output (or its input) in every forward pass, until it is removed.

    The layer after it may write into the same memory (``nn.ReLU(inplace=True)`` after a
    BatchNorm, ``x += shortcut``), so the values are copied at once: reading them later, or
    noticing the write by the tensor's version, would be too late. Gradients flow from the copy
    into the layer; a write that follows does not reach the copy, nor its backward pass. The hook
    changes nothing that the network computes.

    A context manager: the hook lives as long as the block, so that copies of the network
    (``deepcopy``, ``pickle``) never carry a hook that writes into this one.

    :param layer: any module.
    :param what: names the layer in errors, e.g. ``"layer='norm'"``.
    :param reads: keep the layer's first input instead of its output.
    :ivar values: one tensor for each time that the layer ran, oldest first.
    :raises ValueError: in the forward pass, when the layer gives (or reads) no tensor.
    """

    def __init__(self, layer: nn.Module, what: str, reads: bool = False):
        self.values: list[Tensor] = []
        self._what = what
        if reads:
            self._handle = layer.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._handle = layer.register_forward_hook(self._after)

    def remove(self) -> None:
        """Take the hook off; what is kept stays."""
        self._handle.remove()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before(self, _layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._keep([*inputs, *named.values(), None][0], "reads")

    def _after(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        self._keep(output, "gives")

    def _keep(self, value: Any, verb: str) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{self._what} {verb} a {type(value).__name__}, no tensor; name another layer, "
                "e.g. one inside it or after it."
            )
        self.values.append(value.clone())
