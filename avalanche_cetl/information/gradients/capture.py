"""One forward pass and one backward pass a loss, keeping what per-sample gradients need.

Parameters do not require gradients meanwhile, so the backward pass computes the gradients
of activations only. Tensor hooks keep the output gradient of every layer in question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl.common.processes import StartAgainError
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.information.likelihood import BoundLoss


class RowMismatchError(StartAgainError):
    """A layer was given other rows than the batch's: its calls cannot be split by sample."""


@dataclass
class Call:
    """One call of a module: what went in, and the gradient of what came out, per loss.

    :ivar inputs: positional inputs.
    :ivar named: keyword inputs.
    :ivar gradients: of the (first) output, one a loss; None where the loss does not reach it.
    :ivar steps: of a recurrent layer, its parameters' own calls, once they are made.
    """

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    gradients: list[Tensor | None]
    steps: dict[str, Call] | None = None

    @property
    def values(self) -> tuple[Any, ...]:
        """All inputs: positional ones, then those by keyword."""
        return (*self.inputs, *self.named.values())

    @property
    def x(self) -> Any:
        """The first input."""
        return self.values[0]

    def rowwise(self, samples: int) -> tuple[bool, ...]:
        """Return which of the inputs have as many rows as there are samples."""
        return tuple(
            isinstance(v, Tensor) and v.dim() > 0 and len(v) == samples for v in self.values
        )


@dataclass
class Captured:
    """A captured batch.

    :ivar calls: by module, its calls in their order.
    :ivar expanded: by parameter name, per loss the per-sample gradients ``(n, *rest)``.
    :ivar targets: per loss.
    :ivar values: per loss, the loss of every sample.
    :ivar samples: n.
    """

    calls: dict[nn.Module, list[Call]]
    expanded: dict[str, list[Tensor | None]]
    targets: list[Any] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    samples: int = 0


class _Start(torch.autograd.Function):
    """Let the graph begin at a layer's output: a copy of it, tied to a token."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, token: Tensor) -> Tensor:
        ctx.token = token
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros_like(ctx.token)


@contextmanager
def requires_grad(parameters: Iterable[Tensor], required: bool) -> Iterator[None]:
    """Let parameters require a gradient, or none; put everything back afterwards."""
    before = [(p, p.requires_grad) for p in parameters]
    try:
        for p, _ in before:
            p.requires_grad_(required)
        yield
    finally:
        for p, was_required in before:
            p.requires_grad_(was_required)


@contextmanager
def _expanded(model: nn.Module, names: Sequence[str], samples: int) -> Iterator[dict[str, Tensor]]:
    """Put one copy per sample in the place of parameters whose first dimension is 1."""
    copies: dict[str, Tensor] = {}
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for name in names:
            path, _, local = name.rpartition(".")
            owner = model.get_submodule(path)
            parameter = owner._parameters[local]
            assert parameter is not None
            copies[name] = parameter.detach().expand(samples, *parameter.shape[1:]).requires_grad_()
            places.append((owner, local, parameter))
            owner._parameters[local] = copies[name]  # type: ignore[assignment]
        yield copies
    finally:
        for owner, local, parameter in places:
            owner._parameters[local] = parameter


def capture(
    model: nn.Module,
    inputs: Sequence[Tensor],
    losses: Sequence[BoundLoss],
    rows: slice,
    modules: Sequence[nn.Module],
    expand: Sequence[str] = (),
) -> Captured:
    """Run the model on some samples and keep the calls of some modules.

    :param model: that is run.
    :param inputs: of all samples; ``rows`` are read.
    :param losses: each is summed over the samples and differentiated on its own.
    :param rows: which of the samples.
    :param modules: whose calls to keep.
    :param expand: names of parameters of shape ``(1, ...)`` to differentiate sample by sample.
    """
    parts = [own_copy(part[rows].detach()) for part in inputs]
    n = len(parts[0])
    token = torch.zeros((), device=parts[0].device, requires_grad=True)
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}
    current = 0

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return None
        call = Call(args, kwargs, [None] * len(losses))
        fresh = not first.requires_grad
        if fresh:
            first = _Start.apply(first.detach(), token)

        def note(gradient: Tensor) -> None:
            call.gradients[current] = gradient.detach()

        # The graph, which the inputs hold, would hold the call for good.
        stack.callback(first.register_hook(note).remove)
        calls[module].append(call)
        if not fresh:
            return None
        if isinstance(output, Tensor):
            return first
        make = getattr(output, "_make", type(output))  # of a named tuple
        return make([first, *output[1:]])

    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(bool(modules or expand)))
        stack.enter_context(requires_grad(model.parameters(), False))
        copies = stack.enter_context(_expanded(model, expand, n))
        for module in modules:
            handle = module.register_forward_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        outputs = model(*parts)
        captured = Captured(calls, {name: [None] * len(losses) for name in expand}, samples=n)
        values = []
        for loss in losses:
            captured.targets.append(loss.targets(outputs, rows))
            values.append(loss(outputs, captured.targets[-1]))
            if len(values[-1]) != n:
                raise ValueError(
                    f"the loss gave {len(values[-1])} values for {n} samples; it has to give one "
                    "per sample, shape (N,)."
                )
            # Of several outputs a loss may read one that has no gradient.
            alone = isinstance(outputs, Tensor) and outputs.requires_grad
            if alone and not values[-1].requires_grad:
                raise ValueError(
                    f"the loss has no gradient: it is detached, or of type {values[-1].dtype}. It "
                    "has to be computed from the model's outputs by differentiable operations."
                )
            captured.values.append(values[-1].detach())
        for current, value in enumerate(values):
            if not value.requires_grad:
                continue
            gradients = torch.autograd.grad(
                value.sum(),
                [token, *copies.values()],
                retain_graph=current + 1 < len(values),
                allow_unused=True,
            )
            for name, gradient in zip(copies, gradients[1:], strict=True):
                captured.expanded[name][current] = gradient
    return captured


class Activations:
    """Memory that a pass keeps for its backward pass, parameters left out."""

    def __init__(self, model: nn.Module):
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once; return the tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def counted(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return a context that counts what autograd saves."""
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda t: t)

    @property
    def bytes(self) -> int:
        """The sum over storages."""
        return sum(self._sizes.values())
