"""A kept plan is proven again at every call, on two samples of the batch that is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from avalanche_cetl.information.bundles import Bundle, ModuleBundle, RowMismatchError
from avalanche_cetl.information.likelihood import BoundLoss, select
from avalanche_cetl.information.plain import Gradients, PlainGradients
from avalanche_cetl.information.trial import Room
from avalanche_cetl.information.whole import ModelBundle, PlainBundle


class StalePlanError(RowMismatchError):
    """A kept plan does not give autograd's gradients any more."""


class Proof:
    """Plain autograd's gradients of two samples, and what the bundles give for them.

    A route is refuted by both samples together: in float32 a unit of one of them may lie so near
    a kink that rounding decides its gradient. The cheap bundles are asked for the two samples at
    once; those that torch.func runs tell when they come to them.

    :param plain: over all samples of the call.
    :param targets: per loss, those of the first batch, which starts with the call's first sample.
    :param samples: of that batch.
    :raises Exception: whatever the loss raises when it is given a single sample.
    """

    def __init__(
        self,
        plain: PlainGradients,
        losses: Sequence[BoundLoss],
        targets: Sequence[Any],
        samples: int,
    ):
        def own(outputs: Any, rows: list[int]) -> Tensor:
            values = losses[0](outputs, select(targets[0], rows))
            if len(values) != len(rows):
                raise ValueError("the loss reads other samples than those that it is given.")
            return values

        rows = sorted({0, samples // 2})
        self._truth: dict[int, Gradients] = {row: plain.of(row, own)[1] for row in rows}
        self._room = Room(list(self._truth.values()), strict=False)
        self._refuted: dict[str, int] = {}

    def of(self, bundles: Sequence[Bundle]) -> None:
        """Compare bundles of the first batch, or let them compare later.

        :raises StalePlanError: where both samples refute a route.
        """
        for bundle in bundles:
            if isinstance(bundle, PlainBundle) or not bundle.alive(0):
                continue
            if isinstance(bundle, ModuleBundle | ModelBundle):
                bundle.proof = self.see
                continue
            for row in self._truth:
                values = bundle.gradients(0, slice(row, row + 1))
                self.see(0, slice(row, row + 1), _restored(bundle, values))

    def see(self, loss: int, rows: slice, values: Mapping[str, Tensor]) -> None:
        """Compare the samples among these rows.

        :param values: per-sample gradients ``(n, *param.shape)`` by parameter name.
        """
        if loss:
            return
        for row, truth in self._truth.items():
            if not rows.start <= row < rows.stop:
                continue
            for name, value in values.items():
                if not self._room.agree(value[row - rows.start], truth[name]):
                    self._refuted[name] = self._refuted.get(name, 0) + 1
                    if self._refuted[name] == len(self._truth):
                        raise StalePlanError(name)


def _restored(bundle: Bundle, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: bundle.layout(name).restore(value).reshape(len(value), *bundle.params[name].shape)
        for name, value in values.items()
    }
