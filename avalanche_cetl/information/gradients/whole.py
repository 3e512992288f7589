"""Per-sample gradients of the whole model: by torch.func, or by a backward pass a sample."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl.information.gradients.bundles import SlowBundle
from avalanche_cetl.information.gradients.functional import current_autocast, model_gradients
from avalanche_cetl.information.gradients.plain import PlainGradients, row_loss
from avalanche_cetl.information.gradients.precision import magnitude, single
from avalanche_cetl.information.likelihood import BoundLoss, select

logger = logging.getLogger(__name__)


class PlainBundle(SlowBundle):
    """Parameters by plain autograd, one sample after the other.

    :param params: that no layer's bundle has, by name.
    :param plain: over all samples of the call.
    :param start: index of the batch's first sample among them.
    :param losses: over the batch.
    :param targets: per loss, those of the batch.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        plain: PlainGradients,
        start: int,
        losses: Sequence[BoundLoss],
        targets: Sequence[Any],
    ):
        super().__init__(params)
        self.plain, self.start, self.losses, self.targets = plain, start, losses, targets
        self._autocast = current_autocast(next(iter(params.values())).device)

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        own = row_loss(self.losses[loss], self.targets[loss], self.start)
        found: dict[str, list[Tensor]] = {name: [] for name in self.params}
        for row in range(rows.start, rows.stop):
            with self._autocast():
                _, gradients = self.plain.of(self.start + row, own)
            for name, parameter in self.params.items():
                gradient = gradients[name]
                gradient = torch.zeros_like(parameter) if gradient is None else gradient
                found[name].append(magnitude(gradient.detach()))
        return {name: single(torch.stack(rows)) for name, rows in found.items()}


class ModelBundle(SlowBundle):
    """Parameters by torch.func on the whole model; by plain autograd where that fails."""

    def __init__(
        self,
        params: Mapping[str, Tensor],
        model: nn.Module,
        inputs: Sequence[Tensor],
        losses: Sequence[BoundLoss],
        targets: Sequence[Any],
        plain: PlainBundle,
        sample_bytes: int = 0,
    ):
        super().__init__(params)
        self._sample_bytes, self._plain = sample_bytes, plain
        self.model, self.inputs, self.losses, self.targets = model, inputs, losses, targets
        self._autocast = current_autocast(inputs[0].device)

    def row_bytes(self) -> int:
        """Return the memory of one sample's gradients and of its activations on the way."""
        return super().row_bytes() + self._sample_bytes

    def _computed(self, loss: int, rows: slice) -> dict[str, Tensor]:
        parts = [part[rows] for part in self.inputs]
        wanted = select(self.targets[loss], rows)
        pairs = self._plain.plain.pairs
        try:
            with self._autocast():
                found = model_gradients(
                    self.model, parts, self.losses[loss], wanted, self.params, pairs
                )
        except (RuntimeError, NotImplementedError) as problem:
            # These samples take another way through the model than those that were tried.
            logger.debug("torch.func cannot run %s: %s", type(self.model).__name__, problem)
            return self._plain.gradients(loss, rows)
        return {name: magnitude(value) for name, value in found.items()}
