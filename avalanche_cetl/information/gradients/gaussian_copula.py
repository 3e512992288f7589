"""The "gaussian" relative Fisher information without a tensor of samples times weights.

What is computed: for every weight the correlation, over samples, of ``u = log(F_1 / mean F_1 +
floor)`` and ``v``, the same of the other task. A correlation needs five sums over samples: of u, v,
``u^2``, ``v^2`` and ``uv``. They are added up batch by batch, after a first round has given the
means, and no values of single samples are kept.

In closed form: where each per-sample gradient of a weight matrix is one outer product, ``G_n =
g_n a_n^T``, the logarithm is a sum, ``u_nij = l_ni + r_nj`` with ``l = log g^2`` and ``r = log
a^2``. Then ``sum_n u_nij = sum_n l_ni + sum_n r_nj``, and for the products

    ``sum_n u_nij v_nij = sum_n l_ni l'_ni + sum_n r_nj r'_nj + (l^T r')_ij + (l'^T r)_ij``,

a column, a row and two matrix products ``(O, N) x (N, I)``, as the Fisher information itself is
one. They replace N logarithms for each of the ``O I`` weights. To stay a sum, the floor is on
either factor instead of on the product (:mod:`~avalanche_cetl.information.relative`).

Where it would break: variances come out as differences of mean squares and squared means, so what
is left of them has an absolute error of some eps times the mean square. Values are divided by
their means before the logarithm, so that no loss's scale shifts all logarithms and adds to that.
:func:`~avalanche_cetl.information.estimators.correlation` has a floor for what cannot be told from
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_cetl.information.estimators import LOG_FLOOR, correlation
from avalanche_cetl.information.gradients.grad_sample import Batch, GradSample
from avalanche_cetl.information.gradients.per_sample import PerSampleGradients
from avalanche_cetl.information.gradients.second_moments import SquareMeans, add_products

#: A mean of squares below this (gradients of 1e-15) counts as this: its reciprocal has to be finite
#: in float32.
_TINY = 1e-30


@dataclass
class _Sums:
    """Sums over samples of u, v, u^2, v^2 and uv, in a parameter's layout."""

    u: Tensor
    v: Tensor
    uu: Tensor
    vv: Tensor
    uv: Tensor

    @classmethod
    def zeros(cls, like: Tensor) -> _Sums:
        return cls(*(torch.zeros_like(like) for _ in range(5)))

    def part(self, rows: slice) -> _Sums:
        """Return the sums of some entries of the first dimension; they share their memory."""
        return _Sums(*(t[rows] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all five."""
        return self.u, self.v, self.uu, self.vv, self.uv

    def add(self, u: Tensor, v: Tensor) -> None:
        """Add some samples, ``(n, *layout)``."""
        self.u += u.sum(0)
        self.v += v.sum(0)
        add_products(self.uu, u, u)
        add_products(self.vv, v, v)
        add_products(self.uv, u, v)

    def correlation(self, n: int) -> Tensor:
        """Return the absolute correlation of u and v over n samples."""
        u, v = self.u / n, self.v / n
        uu, vv = self.uu / n, self.vv / n
        size = torch.maximum(uu, vv)
        return correlation(uu - u * u, vv - v * v, self.uv / n - u * v, size)


@torch.no_grad()
def gaussian_relative(gradients: PerSampleGradients, means: SquareMeans) -> dict[str, Tensor]:
    """Compute the "gaussian" relative Fisher information of two losses, in layout.

    :param gradients: of both losses, over all samples.
    :param means: of the same.
    """
    sums: dict[str, _Sums] = {}
    relative: dict[str, Tensor] = {}
    for batch in gradients.batches():
        for sample in batch.grad_samples:
            if not all(name in task for task in means.fisher for name in sample.names):
                continue
            for name in sample.names:
                if name not in sums:
                    sums[name] = _Sums.zeros(means.fisher[0][name])
            if all(sample.names[0] in factors for factors in means.factors):
                _add_outer(sums, sample, means)
            else:
                _add_blocks(sums, batch, sample, means)
            if gradients.one_batch and gradients.processes.alone:
                _finish(relative, sums, means, gradients.total)
    gradients.processes.meet()
    for name in gradients.params:
        if name in sums:
            gradients.processes.add(sums[name].tensors())
    _finish(relative, sums, means, gradients.total)
    return relative


def _finish(
    relative: dict[str, Tensor], sums: dict[str, _Sums], means: SquareMeans, samples: int
) -> None:
    for name in list(sums):
        value = sums.pop(name).correlation(samples)
        for task in means.fisher:
            value.mul_(task[name] > 0)  # a dead weight shares nothing
        relative[name] = value


def _add_outer(sums: dict[str, _Sums], sample: GradSample, means: SquareMeans) -> None:
    """Add a batch whose gradients are single outer products: ``u_ij = l_i + r_j``.

    Two losses of one layer's output have the same input, and often one factor in common: then
    their matrix products are the same, and made once.
    """
    name = sample.names[0]
    lefts, rights = [], []
    for k in (0, 1):
        factors = sample.outer(k)
        assert factors is not None
        left, right = factors.left.squeeze(-1), factors.right.squeeze(1)
        mean_left, mean_right = means.factors[k][name]
        lefts.append(_log_over_mean(left, mean_left))
        rights.append(_log_over_mean(right, mean_right))
    same = (torch.equal(lefts[0], lefts[1]), torch.equal(rights[0], rights[1]))
    products: dict[tuple[int, int], Tensor] = {}

    def cross(i: int, j: int) -> Tensor:
        key = (0 if same[0] else i, 0 if same[1] else j)
        if key not in products:
            products[key] = lefts[key[0]].T @ rights[key[1]]
        return products[key]

    def outside(i: int, j: int) -> Tensor:
        column = (lefts[i] * lefts[j]).sum(0).unsqueeze(1)
        return column + (rights[i] * rights[j]).sum(0)

    total = sums[name]
    total.u += lefts[0].sum(0).unsqueeze(1) + rights[0].sum(0)
    total.v += lefts[1].sum(0).unsqueeze(1) + rights[1].sum(0)
    total.uu += outside(0, 0).add_(cross(0, 0), alpha=2)
    total.vv += outside(1, 1).add_(cross(1, 1), alpha=2)
    total.uv += outside(0, 1).add_(cross(0, 1)).add_(cross(1, 0))


def _log_over_mean(values: Tensor, mean_square: Tensor) -> Tensor:
    """Return ``log(values^2 / mean + floor)``."""
    tiny = torch.finfo(mean_square.dtype).tiny
    return torch.log(values.square() / mean_square.clamp_min(tiny) + LOG_FLOOR)


def _add_blocks(
    sums: dict[str, _Sums], batch: Batch, sample: GradSample, means: SquareMeans
) -> None:
    """Add a batch, a few samples at a time."""
    stretch = [
        {name: means.fisher[k][name].clamp_min(_TINY).reciprocal() for name in sample.names}
        for k in (0, 1)
    ]
    for _, part, by_loss in batch.pieces(sample, (0, 1)):
        for name in sample.names:
            logs = []
            for k in (0, 1):
                gradient = by_loss[k][name]
                floor = gradient.new_tensor(LOG_FLOOR)
                logs.append(torch.addcmul(floor, gradient.square_(), stretch[k][name][part]).log_())
            sums[name].part(part).add(*logs)
