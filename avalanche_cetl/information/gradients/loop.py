"""The reference: per-sample gradients by a loop, one backward pass a sample, on the model itself.

The slowest way, and right for whatever trains: packed sequences, autograd functions of one's
own, checkpointing, forward passes that write buffers. The other ways are verified against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from avalanche_cetl.common.state import ModelState
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.information.gradients.capture import requires_grad
from avalanche_cetl.information.gradients.grad_sample import KeptGradSample
from avalanche_cetl.information.gradients.precision import current_autocast, magnitude, to_float32
from avalanche_cetl.information.likelihood import BoundLoss, select

Gradients = dict[str, Tensor | None]
RowLoss = Callable[[Any, list[int]], Tensor]


class Loop:
    """Gradients of one sample after another, each run on its own.

    Before each sample the model's buffers and kept values are put back, so that every sample
    meets the model as it was. A model that loses the batch axis of a single sample (``squeeze()``
    in its forward pass) runs the sample twice, as a batch of two; the loss of the first counts.

    :param model: in evaluation mode.
    :param inputs: of all samples.
    :param params: to differentiate, keyed as ``model.named_parameters()``.
    :param state: of the model, as every sample has to meet it.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        params: Mapping[str, Tensor],
        state: ModelState,
    ):
        self.model, self.params, self._state = model, dict(params), state
        self._inputs = list(inputs)
        self._seen = self._by_backward = False

    def of(self, row: int, loss: RowLoss) -> tuple[Tensor, Gradients]:
        """Run one sample.

        :param row: its index.
        :param loss: ``(outputs, rows) -> (n,)``: the losses of outputs that belong to these rows
            (to one, or to the same row twice for a pair).
        :return: the sample's loss, and its gradients by name; None where it does not reach.
        """
        if not self._by_backward:
            try:
                return self._by_grad(row, loss)
            except RuntimeError:
                # Checkpointing in its reentrant form refuses autograd.grad, which is to be had
                # otherwise: backward() calls hooks of parameters, which may step an optimiser
                # or reduce gradients over processes.
                hooks = "_post_accumulate_grad_hooks"
                if any(getattr(p, hooks, None) for p in self.model.parameters()):
                    raise
        with requires_grad(self.params.values(), True), _gradients_put_back(self.model):
            value = self._loss(row, loss)
            value.backward()
            self._by_backward = True
            return value.detach(), {name: _dense(p.grad) for name, p in self.params.items()}

    def _by_grad(self, row: int, loss: RowLoss) -> tuple[Tensor, Gradients]:
        with requires_grad(self.params.values(), True):
            value = self._loss(row, loss)
            if not value.requires_grad:
                return value, dict.fromkeys(self.params)
            wanted = list(self.params.values())
            if not self._seen:
                # Parameters inside of a reentrant checkpoint are unseen, and refused only where
                # a gradient is asked for that lies behind it.
                wanted += [p for p in self.model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(value, wanted, allow_unused=True)
            self._seen = True
            return value.detach(), dict(zip(self.params, map(_dense, gradients), strict=False))

    def _loss(self, row: int, loss: RowLoss) -> Tensor:
        rows = [row, row] if self.pairs else [row]
        with torch.enable_grad():
            return loss(self.outputs(row, self.pairs), rows)[0]

    def outputs(self, row: int, pair: bool) -> Any:
        """Run the model on one sample, or on the same sample twice."""
        self._state.put_back()
        one = [part[row : row + 1].detach() for part in self._inputs]
        return self.model(*(torch.cat([part, part]) if pair else own_copy(part) for part in one))

    @cached_property
    @torch.no_grad()
    def pairs(self) -> bool:
        """Whether single samples run as pairs: their outputs are not those of two less a row."""
        try:
            two = _shapes(self.outputs(0, pair=True))
        except Exception:
            return False  # no batch of two at all
        try:
            one = _shapes(self.outputs(0, pair=False))
        except Exception:
            return True
        return len(one) != len(two) or not all(map(_one_row_less, one, two))


def row_loss(loss: BoundLoss, targets: Any, start: int = 0) -> RowLoss:
    """Return a loss as :class:`Loop` reads it.

    :param loss: of a batch.
    :param targets: of a batch.
    :param start: index of the batch's first sample.
    """
    return lambda outputs, rows: loss(outputs, select(targets, [row - start for row in rows]))


class LoopGradSample(KeptGradSample):
    """Parameters by the loop.

    :param params: by name.
    :param loop: over all samples of the call.
    :param start: index of the batch's first sample among them.
    :param losses: over the batch.
    :param targets: per loss, those of the batch.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        loop: Loop,
        start: int,
        losses: Sequence[BoundLoss],
        targets: Sequence[Any],
    ):
        super().__init__(params)
        self.loop, self.start, self.losses, self.targets = loop, start, losses, targets
        self._autocast = current_autocast(next(iter(params.values())).device)

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        of_rows = row_loss(self.losses[loss], self.targets[loss], self.start)
        by_row: dict[str, list[Tensor]] = {name: [] for name in self.params}
        for row in range(rows.start, rows.stop):
            with self._autocast():
                _, gradients = self.loop.of(self.start + row, of_rows)
            for name, parameter in self.params.items():
                gradient = gradients[name]
                gradient = torch.zeros_like(parameter) if gradient is None else gradient
                by_row[name].append(magnitude(gradient.detach()))
        return {name: to_float32(torch.stack(values)) for name, values in by_row.items()}


def _dense(gradient: Tensor | None) -> Tensor | None:
    """Return a gradient as a dense tensor: that of an Embedding may be sparse."""
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def _shapes(outputs: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _one_row_less(one: torch.Size, two: torch.Size) -> bool:
    differing = [(a, b) for a, b in zip(one, two, strict=False) if a != b]
    return len(one) == len(two) and differing in ([], [(1, 2)])


@contextmanager
def _gradients_put_back(model: nn.Module) -> Iterator[None]:
    before = [(p, p.grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.grad = None
        yield
    finally:
        for p, gradient in before:
            p.grad = gradient
