"""The one hook on layers: what they give, or read, while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl.common.state import version_of


@contextmanager
def watched(layers: Iterable[nn.Module], see: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Call a function with each layer that runs, and its output, as long as the block lasts.

    :param layers: the layers to watch.
    :param see: gets the layer and its output, right after the layer has run; it must not change
        the output.
    """

    def hook(layer: nn.Module, _inputs: Any, output: Any) -> None:
        see(layer, output)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(hook).remove)
        yield


class Ran:
    """The layers that ran, in the order in which they ended.

    :ivar runs: layer and output, one pair for each time that one ran.
    """

    def __init__(self) -> None:
        # The outputs themselves, not their addresses: memory that is freed is given to another.
        self.runs: list[tuple[nn.Module, Any]] = []
        self._versions: list[int | None] = []

    def see(self, layer: nn.Module, output: Any) -> None:
        """Take down that a layer has run; the function that :func:`watched` calls."""
        self.runs.append((layer, output))
        self._versions.append(version_of(output) if isinstance(output, Tensor) else None)

    def giving(self, result: Any) -> nn.Module | None:
        """Return the layer that gave a tensor, as it is, in its latest run; else None.

        :param result: of the network. Its memory tells, not its values: those of another layer
            may be equal, e.g. where what is added to them is 0 before training.
        """
        for (layer, output), version in zip(self.runs[::-1], self._versions[::-1], strict=True):
            if (
                isinstance(result, Tensor)
                and isinstance(output, Tensor)
                and output.numel() == result.numel()
                and _same_memory(output, result)
                and version == version_of(result)
            ):
                return layer
        return None

    def last(self, result: Any) -> nn.Module | None:
        """Return the layer that gave a network's result, or else the one that ran last."""
        layer = self.giving(result) or (self.runs[-1][0] if self.runs else None)
        # Attention reads the weights of its last linear layer, which does not run itself.
        return layer.out_proj if isinstance(layer, nn.MultiheadAttention) else layer


def _same_memory(one: Tensor, other: Tensor) -> bool:
    try:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # inside vmap() or grad() of torch.func
        return one is other


class Values:
    """Tensors of one layer, one for each time that it ran.

    :ivar values: oldest first.
    """

    values: list[Tensor]

    def latest(self, missing: str) -> Tensor:
        """Return the tensor of the latest run.

        :param missing: the message of the error.
        :raises ValueError: when the layer did not run.
        """
        if not self.values:
            raise ValueError(missing)
        return self.values[-1]


class Kept(Values):
    """Copies of a layer's outputs (or inputs), one for each forward pass until it is removed.

    They are copied at once, because the next layer may write into the same memory
    (``nn.ReLU(inplace=True)`` after a BatchNorm, ``x += shortcut``): reading the values later, or
    noticing the write by the tensor's version, would be too late. Gradients flow from the copy
    into the layer; a later write does not reach the copy, nor its backward pass. The hook changes
    nothing that the network computes.

    A context manager: the hook lives as long as the block, so that copies of the network
    (``deepcopy``, ``pickle``) never carry a hook that writes into this one.

    :param layer: any module.
    :param what: names the layer in errors, e.g. ``"layer='norm'"``.
    :param reads: keep the layer's first input instead of its output.
    :param trained: keep nothing of passes without gradients, such as those of an evaluation.
    :ivar values: one tensor for each time that the layer ran, oldest first.
    :raises ValueError: in the forward pass, when the layer gives (or reads) no tensor.
    """

    def __init__(self, layer: nn.Module, what: str, reads: bool = False, trained: bool = False):
        self.values: list[Tensor] = []
        self._what, self._trained = what, trained
        if reads:
            self._handle = layer.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._handle = layer.register_forward_hook(self._after)

    def remove(self) -> None:
        """Remove the hook; the values stay."""
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
        if self._trained and not torch.is_grad_enabled():
            return
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{self._what} {verb} a {type(value).__name__}, no tensor; name another layer, "
                "e.g. one inside it or after it."
            )
        self.values.append(value.clone())
