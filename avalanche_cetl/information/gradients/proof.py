"""A plan is proven on a few samples of the batch that is measured, with its own losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from avalanche_cetl.information.gradients.agreement import Agreement, same_values
from avalanche_cetl.information.gradients.bundles import Bundle, SlowBundle
from avalanche_cetl.information.gradients.capture import Captured
from avalanche_cetl.information.gradients.plain import Gradients, PlainGradients, row_loss
from avalanche_cetl.information.gradients.precision import magnitude
from avalanche_cetl.information.gradients.routes import StalePlanError
from avalanche_cetl.information.gradients.whole import PlainBundle
from avalanche_cetl.information.likelihood import BoundLoss


class Proof:
    """Plain autograd's gradients of a few samples, to compare the bundles' with.

    It reads the losses that are measured, on the batch that is measured: so it also sees
    parameters that a loss reads by itself, and losses and networks that depend on how many samples
    there are. In float32 a unit of one sample may lie so near a kink that rounding decides its
    gradient: of three samples two have to refute a route there, in float64 one. The cheap bundles
    compute these samples at once; those that torch.func runs are compared when they come to them.

    :param plain: over all samples of the call.
    :param losses: that are measured.
    :param captured: the first batch, which starts with the call's first sample.
    :param rows: which samples of it.
    :param count: of losses to prove, from the first.
    :raises StalePlanError: when a loss of a sample on its own is not that in the batch.
    :raises Exception: whatever a loss raises when it is given a single sample.
    """

    def __init__(
        self,
        plain: PlainGradients,
        losses: Sequence[BoundLoss],
        captured: Captured,
        rows: Sequence[int],
        count: int,
    ):
        self._truth: list[dict[int, Gradients]] = []
        for k in range(count):
            found = {row: plain.of(row, row_loss(losses[k], captured.targets[k])) for row in rows}
            alone = torch.stack([value for value, _ in found.values()])
            if not same_values(captured.values[k][list(found)], alone):
                raise StalePlanError("a loss or a layer depends on the number of samples")
            self._truth.append({row: gradients for row, (_, gradients) in found.items()})
        self._agreements = [Agreement(list(truth.values()), strict=False) for truth in self._truth]
        self._refuted: dict[tuple[int, str], int] = {}
        exact = all(p.dtype == torch.float64 for p in plain.params.values())
        self._enough = 1 if exact or len(rows) == 1 else 2

    def of(self, params: Mapping[str, Tensor], bundles: Sequence[Bundle]) -> None:
        """Compare bundles of the first batch, or let them compare later.

        :param params: all that are measured; those without a bundle have no gradient.
        :param bundles: of the parameters that have one.
        :raises StalePlanError: where a route is refuted.
        """
        for k, truth in enumerate(self._truth):
            left = dict(params)
            for bundle in bundles:
                if not bundle.alive(k):
                    continue
                for name in bundle.names:
                    left.pop(name)
                if isinstance(bundle, PlainBundle):
                    continue
                if isinstance(bundle, SlowBundle):
                    bundle.proof = self.see
                else:
                    for row in truth:
                        rows = slice(row, row + 1)
                        self.see(k, rows, _restored(bundle, bundle.gradients(k, rows)))
            for row in truth:
                zeros = {n: torch.zeros_like(magnitude(p.detach()))[None] for n, p in left.items()}
                self.see(k, slice(row, row + 1), zeros)

    def see(self, loss: int, rows: slice, values: Mapping[str, Tensor]) -> None:
        """Compare the samples among these rows.

        :param loss: its number.
        :param rows: which of the batch.
        :param values: per-sample gradients ``(n, *param.shape)`` by parameter name.
        """
        if loss >= len(self._truth):
            return
        for row, truth in self._truth[loss].items():
            if not rows.start <= row < rows.stop:
                continue
            for name, value in values.items():
                if not self._agreements[loss].holds(value[row - rows.start], truth[name]):
                    key = (loss, name)
                    self._refuted[key] = self._refuted.get(key, 0) + 1
                    if self._refuted[key] == self._enough:
                        raise StalePlanError(f"another gradient of {name} than autograd's")


def _restored(bundle: Bundle, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: bundle.layout(name).restore(value).reshape(len(value), *bundle.params[name].shape)
        for name, value in values.items()
    }
