"""Bases in which Fisher information is nearly diagonal: eigenvectors of Kronecker factors.

Equations 9 to 11 are written weight by weight. The same equations hold direction by direction in
any orthonormal basis of a layer's weight matrix, and the basis decides how much a diagonal leaves
out. A layer's sample n has the gradient ``G_n = sum_t g_nt a_nt^T`` over positions t (pixels,
tokens; one for a plain Linear layer), with the bias folded in as one more input of constant 1. Its
Kronecker factors are

    ``A = mean_n sum_t a_nt a_nt^T``  and  ``B = mean_n sum_t g_nt g_nt^T``

(Martens and Grosse 2015; Grosse and Martens 2016 for convolutions). With their eigenvectors V and
U, a direction is ``u_i v_j^T``, and its Fisher information is ``F_ij = mean_n (U^T G_n V)_ij^2``:
the diagonal of the exact Fisher information in these coordinates (EKFAC; George et al. 2018), not
the product of two eigenvalues.

The leading eigenvectors alone are kept: those that hold the factor's trace, at most ``rank``. They
are computed in float64 (in float32 ``eigh`` does not converge where inputs are always blank). A sum
``X^T X`` of fewer rows than columns has the eigenvectors of ``X X^T``, times X: the rows are kept,
and the smaller matrix is made. Where a factor has more than ``_DENSE`` rows otherwise, a randomised
method with two subspace iterations takes its place (Halko, Martinsson and Tropp 2011), which needs
products with the factor and never the factor itself.

A layer with many positions has far more rows than its eigenvectors need. Its factors are read on
evenly spaced samples, ``_LEAST`` at least, that have ``_ROWS`` times as many rows together as the
larger factor has. The Fisher information in the basis is of all samples.

Layers that are shared or called several times, and all that have no weight matrix (norms,
embeddings), stay diagonal in their own coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from avalanche_cetl.information.fisher import DEFAULT_CHUNK_BYTES
from avalanche_cetl.information.gradients.closed_form import ClosedForm
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis, columns_of
from avalanche_cetl.information.gradients.grad_sample import Batch
from avalanche_cetl.information.gradients.per_sample import (
    PerSampleGradients,
    per_sample_gradients,
)
from avalanche_cetl.information.gradients.precision import flush_denormals
from avalanche_cetl.information.gradients.second_moments import square_means
from avalanche_cetl.information.likelihood import Loss, LossName
from avalanche_cetl.information.outputs import Likelihood

#: Rows of a factor from which on it is not made. A dense eigendecomposition of 1,024 rows takes
#: about half a second on one core in float64, and grows with the cube.
_DENSE = 1024
#: Samples that a layer's factors are read on at least, and rows (samples times positions), as a
#: multiple of the larger factor's.
_LEAST, _ROWS = 64, 32
#: Rows of a dense matrix from which on its leading eigenvectors are found by subspace iteration, in
#: so many steps: at 1,024 rows in float32 a tenth of the time of all eigenvectors.
_LARGE, _ITERATIONS = 256, 4
#: Vectors that the randomised method takes beyond those that are kept.
_OVERSAMPLING = 16
#: Bytes of a layer's right factors that are read at once.
_BLOCK = 32 * 2**20
#: A trace below this counts as this.
_TINY = 1e-300
#: A trace is held when rounding alone is missing: this share, or so many units in the last place of
#: the gradients' type.
_ROUNDING, _UNITS = 1e-12, 8


def kronecker_basis(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    loss: Loss | LossName = "sampled",
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    *,
    targets: Any = None,
    likelihood: Likelihood = "categorical",
    generator: torch.Generator | None = None,
    rank: int = 64,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    process_group: ProcessGroup | None = None,
) -> KroneckerBasis:
    r"""Compute the eigenbasis of every layer's Kronecker factors, from one pass over the samples.

    Of a layer with inputs a and gradients g of its outputs, at the positions t of sample n, U and V
    are the eigenvectors of

    .. math:: B = \frac{1}{N} \sum_{n,t} g_{nt} g_{nt}^T, \quad
        A = \frac{1}{N} \sum_{n,t} a_{nt} a_{nt}^T

    and a weight matrix W has the coordinates :math:`U^T W V`.

    To measure Fisher information in it, give the same samples and targets to
    :func:`fisher_information` or :func:`relative_fisher` with ``basis=``; with ``loss="sampled"``
    that takes targets that were drawn before (:func:`sample_targets`), with ``"logits"`` vectors
    (:func:`sample_output_vectors`), which :func:`projected_outputs` reads.

    :param model: see :func:`fisher_information`, as all below but ``rank``.
    :param rank: most directions kept on either side of a layer, >= 1.
    :return: the basis; its layers are those with a weight matrix that is used once.
    :raises ValueError: for values out of range, and as in :func:`fisher_information`.
    """
    _check_rank(rank)
    with per_sample_gradients(
        model, inputs, [(loss, targets)], params, chunk_bytes, process_group,
        likelihood=likelihood, generator=generator,
    ) as gradients:  # fmt: skip
        return gradients.reduce(lambda g: _basis(g, rank))


def kronecker_fisher(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    loss: Loss,
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    *,
    targets: Any = None,
    rank: int = 64,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    process_group: ProcessGroup | None = None,
) -> tuple[dict[str, Tensor], KroneckerBasis]:
    """Compute the basis and the Fisher information in it, which is one pass less than one by one.

    :param model: see :func:`kronecker_basis`, as all below.
    :return: what :func:`fisher_information` gives in the basis, and the basis.
    :raises ValueError: as in both.
    """
    _check_rank(rank)

    def both(gradients: PerSampleGradients) -> tuple[dict[str, Tensor], KroneckerBasis]:
        gradients.basis = KroneckerBasis({})  # of an attempt that failed
        basis = _basis(gradients, rank)
        gradients.basis = basis
        return gradients.restored(square_means(gradients).fisher[0]), basis

    losses = [(loss, targets)]
    with per_sample_gradients(
        model, inputs, losses, params, chunk_bytes, process_group
    ) as gradients:
        return gradients.reduce(both)


def _check_rank(rank: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank={rank!r} has to be a whole number >= 1.")


@torch.no_grad()
def _basis(gradients: PerSampleGradients, rank: int) -> KroneckerBasis:
    layers: dict[str, _Layer] = {}
    passes, done = 1, 0
    # With several processes nobody knows how many samples the others read.
    samples = gradients.samples if gradients.processes.alone else None
    while done < passes:
        for batch in gradients.batches():
            for sample in batch.grad_samples:
                if not (isinstance(sample, ClosedForm) and sample.factored and sample.reached(0)):
                    continue
                if sample.name not in layers:
                    bias = _bias_of(gradients, sample)
                    layers[sample.name] = _Layer(sample, bias, rank, samples)
                layer = layers[sample.name]
                if not layer.done:
                    layer.read(batch, sample)
        sides = [(name, side) for name, layer in layers.items() for side in layer.sides]
        gradients.meet([(name, side.sums.shape) for name, side in sides])
        for name, side in sides:
            if not side.done:
                sums = [side.sums, side.trace] if done == 0 else [side.sums]
                gradients.processes.add(sums)
                side.finish(gradients.total if samples is None else layers[name].samples)
        done += 1
        passes = max([passes, *(side.passes for _, side in sides)])
    return KroneckerBasis({name: layer.basis() for name, layer in layers.items()})


def _bias_of(gradients: PerSampleGradients, sample: ClosedForm) -> str | None:
    """Return the bias that is one more input of a layer; None where it is not, or not measured."""
    module = sample.uses[0].module
    name = sample.name.removesuffix("weight") + "bias"
    plain = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    bias = getattr(module, "bias", None)
    if not plain or name not in gradients.params or bias is None:
        return None
    route = gradients.routes[name]
    once = route.kind == "closed_form" and len(route.owners) == 1
    return name if gradients.params[name] is bias and once else None


class _Layer:
    """The two Kronecker factors of a layer while they are added up.

    :param samples: how many there are; None: nobody knows.
    :ivar samples: how many of them are read.
    """

    def __init__(self, sample: ClosedForm, bias: str | None, rank: int, samples: int | None):
        self.name, self.bias = sample.name, bias
        self._columns = columns_of(sample)
        self._step, self.samples, rows = 1, 0, None
        if samples is not None:
            rows = _ROWS * max(sample.layout(sample.name).shape[-2:])
            needed = max(_LEAST, -(-rows // sample.positions))
            self._step = max(1, samples // needed)
            self.samples = len(range(0, samples, self._step))
            rows = self.samples * sample.positions
        self.sides = (_Side(rank, rows), _Side(rank, rows, one_more=bias is not None))

    @property
    def done(self) -> bool:
        """Whether all rounds of both have ended."""
        return all(side.done for side in self.sides)

    def read(self, batch: Batch, sample: ClosedForm) -> None:
        """Add the samples of a batch, every ``step``-th of all."""
        first = -batch.rows.start % self._step
        at_once = self._step * max(1, _BLOCK // max(1, sample.factor_bytes))
        for start in range(first, batch.samples, at_once):
            stop = min(batch.samples, start + at_once)
            factors = sample.factors(slice(start, stop, self._step), 0)
            for side, rows in zip(self.sides, (factors.left.mT, factors.right), strict=True):
                side.add(rows.movedim(0, -3).flatten(-3, -2))

    def basis(self) -> LayerBasis:
        """Return the leading eigenvectors of both, the inputs in the order of the weight."""
        left, right = (side.leading() for side in self.sides)
        count = len(self._columns)
        right = torch.cat([right[..., self._columns, :], right[..., count:, :]], -2)
        return LayerBasis(self.name, self.bias, left, right)


class _Side:
    """One Kronecker factor, ``sum X^T X`` over samples and positions; for each group one.

    Products are computed in the type of the gradients, and added up in float64.

    :param rows: of X, over all rounds; None: nobody knows.
    :param one_more: whether X has one more column than is given, of ones: the bias.
    :ivar passes: rounds over the samples that it takes.
    """

    def __init__(self, rank: int, rows: int | None, one_more: bool = False):
        self.rank, self.one_more, self.passes = rank, one_more, 1
        self._all_rows, self._kept = rows, list[Tensor]()
        self.sums = self.trace = torch.zeros(())
        self._sketch: Tensor | None = None
        self._dtype = torch.float64
        self._rounds, self._begun, self._few = 0, False, False

    @property
    def done(self) -> bool:
        """Whether all rounds have ended."""
        return self._rounds >= self.passes

    def add(self, x: Tensor) -> None:
        """Add rows ``([G,] R, d)``."""
        if self.done:
            return
        if not self._begun:
            self._begin(x)
        if self._rounds == 0:
            self.trace += torch.linalg.vector_norm(x, dim=(-2, -1)).double().square()
            self.trace += x.shape[-2] * self.one_more
        if self._few or self._sketch is None:
            with_one = torch.cat([x, torch.ones_like(x[..., :1])], -1) if self.one_more else x
            if self._few:
                self._kept.append(with_one.clone() if with_one is x else with_one)
            else:
                self.sums += self._times(x, with_one).double()
            return
        sketch = self._sketch.to(x)
        seen = x @ sketch[..., : x.shape[-1], :]
        if self.one_more:
            seen = seen + sketch[..., -1:, :]
        last = self._rounds == self.passes - 1
        self.sums += (seen.mT @ seen if last else self._times(x, seen)).double()

    def _begin(self, x: Tensor) -> None:
        """Make room for the sums of a round."""
        self._begun, self._dtype = True, x.dtype
        size, columns = x.shape[-1] + self.one_more, self.rank + _OVERSAMPLING
        if self._rounds == 0:
            self.trace = x.new_zeros(x.shape[:-2], dtype=torch.float64)
            rows = self._all_rows
            self._few = rows is not None and rows < size and rows <= _DENSE
            if self._few:
                return
            if size > max(_DENSE, columns):
                self.passes = 3
                generator = torch.Generator().manual_seed(0)
                drawn = torch.randn(size, columns, generator=generator, dtype=torch.float64)
                self._sketch = drawn.to(x.device).expand(*x.shape[:-2], size, columns)
        shape = (size, size) if self._sketch is None else (size, columns)
        if self._sketch is not None and self._rounds == self.passes - 1:
            shape = (columns, columns)
        self.sums = x.new_zeros(*x.shape[:-2], *shape, dtype=torch.float64)

    def _times(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``X^T Y``, with the column of ones in X."""
        product = x.mT @ y
        return torch.cat([product, y.sum(-2, keepdim=True)], -2) if self.one_more else product

    def finish(self, samples: int) -> None:
        """End a round over the samples."""
        self.sums /= samples
        self._samples = samples
        if self._rounds == 0:
            self.trace /= samples
        self._rounds += 1
        if self._sketch is not None and not self.done:
            self._sketch = torch.linalg.qr(self.sums).Q
            self._begun = False

    def leading(self) -> Tensor:
        """Return the leading eigenvectors as columns, ``([G,] d, r)``."""
        x = torch.cat(self._kept, -2).double() if self._few else None
        matrix = self.sums if x is None else x @ x.mT / self._samples
        values, vectors = _leading(matrix, self.rank, self._dtype)
        if x is not None:
            # Orthonormal again: the product has lost it where eigenvalues are rounding.
            vectors = torch.linalg.qr(x.mT @ vectors[..., : self.rank]).Q
        elif self._sketch is not None:
            vectors = self._sketch @ vectors
        held = values.cumsum(-1) / self.trace.clamp_min(_TINY).unsqueeze(-1)
        # Else rounding would decide whether directions without any information are kept.
        missing = max(_ROUNDING, _UNITS * torch.finfo(self._dtype).eps)
        needed = int((held < 1 - missing).sum(-1).max()) + 1
        leading = vectors[..., : min(self.rank, needed, vectors.shape[-1])]
        return flush_denormals(leading.contiguous(), self._dtype)


def _leading(matrix: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvalues, in descending order, and eigenvectors of ``([G,] d, d)``.

    All of them, or of a large matrix ``rank`` by subspace iteration: its products are in the type
    that the entries are of, the last one in float64.
    """
    size, columns = matrix.shape[-1], rank + _OVERSAMPLING
    sketch = None
    if size > max(_LARGE, 4 * columns):
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(size, columns, generator=generator, dtype=torch.float64)
        sketch, rounded = drawn.to(matrix.device, dtype), matrix.to(dtype)
        for _ in range(_ITERATIONS - 1):
            sketch = torch.linalg.qr(rounded @ sketch).Q
        sketch = torch.linalg.qr(matrix @ sketch.double()).Q
        matrix = sketch.mT @ matrix @ sketch
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
    return values, vectors if sketch is None else sketch @ vectors
