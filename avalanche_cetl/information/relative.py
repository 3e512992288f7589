"""Relative Fisher information (eq. 9): how much two tasks' Fisher values depend on each other.

``RF_i = I(F_1i, F_2i)``, the mutual information, normalised to [0, 1], of the two
per-sample Fisher values of weight ``i`` over the same samples. The paper names no
estimator; :mod:`~avalanche_cetl.information.estimators` has three.

``"gaussian"`` streams over the samples: no tensor of samples times weights is made. A
value of zero counts as 1e-6 of the weight's mean, ``log(F / mean F + 1e-6)``. Where each
gradient is one outer product ``g_i a_j`` (Linear layers that read one vector per sample,
convolutions with one output pixel) the same floor is on either factor,
``log(g_i^2 / mean g_i^2 + 1e-6) + log(a_j^2 / mean a_j^2 + 1e-6)``, so that all moments
are small matrix products; without values near zero the two forms agree.

Small samples: mean and standard deviation over 4,000 weights of the estimate, for
log-normal Fisher values with correlation rho of their logarithms. Unrelated weights do
not come out at 0.

==== ===== ============== ============== ==============
rho  N     gaussian       rank           histogram
==== ===== ============== ============== ==============
0    64    0.100 +- 0.075 0.100 +- 0.075 0.030 +- 0.021
0    256   0.050 +- 0.037 0.050 +- 0.037 0.038 +- 0.009
0    1024  0.025 +- 0.019 0.025 +- 0.019 0.033 +- 0.004
0.5  64    0.497 +- 0.096 0.488 +- 0.097 0.109 +- 0.051
0.5  256   0.498 +- 0.047 0.496 +- 0.047 0.102 +- 0.017
0.5  1024  0.499 +- 0.024 0.499 +- 0.024 0.084 +- 0.007
0.9  64    0.898 +- 0.025 0.886 +- 0.028 0.417 +- 0.076
0.9  256   0.900 +- 0.012 0.896 +- 0.013 0.373 +- 0.026
0.9  1024  0.900 +- 0.006 0.899 +- 0.006 0.312 +- 0.010
==== ===== ============== ============== ==============
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from avalanche_cetl.information.estimators import check_estimator, estimated
from avalanche_cetl.information.fisher import DEFAULT_CHUNK_BYTES
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis
from avalanche_cetl.information.gradients.gaussian_copula import gaussian_relative
from avalanche_cetl.information.gradients.grad_sample import Batch, GradSample
from avalanche_cetl.information.gradients.per_sample import (
    PerSampleGradients,
    per_sample_gradients,
)
from avalanche_cetl.information.gradients.second_moments import SquareMeans, square_means
from avalanche_cetl.information.likelihood import Loss

#: Copies of a group's values that exist at once: two tasks', and about six in an estimator that
#: sorts.
_COPIES = 8


def relative_fisher(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    losses: tuple[Loss, Loss],
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    *,
    targets: tuple[Any, Any] = (None, None),
    estimator: str = "gaussian",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    process_group: ProcessGroup | None = None,
    basis: KroneckerBasis | None = None,
) -> dict[str, Tensor]:
    r"""Compute relative Fisher information of two losses on the same samples (eq. 9).

    .. math:: RF_i = I(F_{1,i}(x) ; F_{2,i}(x))

    The mutual information I over samples x of the two per-sample Fisher values of a weight, scaled
    to [0, 1]. Symmetric in the two losses, and invariant to rescaling either of them. A weight's
    own draw noise counts: with independently *sampled* targets the two tasks share less than with
    the losses themselves.

    Unrelated weights do not come out at 0: with 64 samples ``"gaussian"`` and ``"rank"`` have a
    mean of 0.10 there, with 256 of 0.05. The module's docstring has a table of all three
    estimators, and how ``"gaussian"`` treats values near zero.

    :param model: any module; called as ``model(*inputs)``, in eval mode. It may return
        several outputs, of which each loss reads its own.
    :param inputs: a tensor ``(N, ...)``, or a tuple of such tensors.
    :param losses: two callables ``(outputs, targets) -> (N,)``.
    :param params: names of the parameters to measure; default: all that require a gradient.
    :param targets: what each loss gets as its second argument, or None.
    :param estimator: ``"gaussian"``, ``"rank"``, ``"histogram"``, or a name that
        :func:`~avalanche_cetl.information.register_estimator` was given.
    :param chunk_bytes: bound on activations and per-sample values held at once, as far as a
        single sample fits. ``"rank"`` and ``"histogram"`` need all samples of a weight: they
        go through the weights in groups, and through the model once per group where the
        activations of all samples exceed the bound.
    :param process_group: as in :func:`fisher_information`; sums (``"rank"`` and
        ``"histogram"``: a group's values) are over the samples of all processes.
    :param basis: as in :func:`fisher_information`.
    :return: dict from parameter name to a tensor of the parameter's shape, in [0, 1],
        0 where either task's Fisher value does not vary.
    :raises ValueError: for an unknown estimator, empty inputs or unknown parameters.
    """
    return fisher_and_relative(
        model,
        inputs,
        losses,
        params,
        targets=targets,
        estimator=estimator,
        chunk_bytes=chunk_bytes,
        process_group=process_group,
        basis=basis,
    )[1]


def fisher_and_relative(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    losses: tuple[Loss, Loss],
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    *,
    targets: tuple[Any, Any] = (None, None),
    estimator: str = "gaussian",
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    process_group: ProcessGroup | None = None,
    basis: KroneckerBasis | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute Fisher information of the first loss, and its relative Fisher with the second.

    One set of per-sample gradients serves both. See :func:`relative_fisher` for arguments.

    :return: ``(fisher, relative)``, dicts keyed by parameter name.
    """
    check_estimator(estimator)

    def both(gradients: PerSampleGradients) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        means = square_means(gradients)
        if estimator == "gaussian":
            relative = gaussian_relative(gradients, means)
        else:
            relative = _estimated(gradients, means, estimator)
        return gradients.restored(means.fisher[0]), gradients.restored(relative)

    with per_sample_gradients(
        model, inputs, list(zip(losses, targets, strict=True)), params, chunk_bytes,
        process_group, basis,
    ) as gradients:  # fmt: skip
        return gradients.reduce(both)


@torch.no_grad()
def _estimated(
    gradients: PerSampleGradients, means: SquareMeans, estimator: str
) -> dict[str, Tensor]:
    """Compute relative Fisher by an estimator that needs all samples of a weight at once."""
    relative: dict[str, Tensor] = {}
    for group in _groups(gradients, means):
        values = [
            {
                name: task[name].new_zeros(gradients.samples, columns.stop - columns.start)
                for name, columns in group.items()
            }
            for task in means.fisher
        ]
        for batch in gradients.batches():
            for sample in batch.grad_samples:
                if any(name in group for name in sample.names):
                    for k in (0, 1):
                        if sample.reached(k):
                            _fill(batch, sample, k, group, values[k])
        gradients.processes.meet()
        for name, columns in group.items():
            tasks = [gradients.processes.rows(v.pop(name), gradients.counts) for v in values]
            if name not in relative:
                relative[name] = torch.zeros_like(means.fisher[0][name])
            relative[name].view(-1)[columns] = estimated(estimator, *tasks)
    return relative


def _fill(
    batch: Batch, sample: GradSample, k: int, group: dict[str, slice], values: dict[str, Tensor]
) -> None:
    """Write the squared gradients of some weights into ``values``, ``(N, columns)`` each."""
    for rows, part, (gradients,) in batch.pieces(sample, [k]):
        target = slice(batch.rows.start + rows.start, batch.rows.start + rows.stop)
        for name, gradient in gradients.items():
            if name not in group:
                continue
            shape = sample.layout(name).shape
            # Where this piece and the wanted columns overlap, counted in flat weights.
            first = (part.start or 0) * (shape[1:].numel() if shape else 1)
            flat = gradient.flatten(1)
            columns = group[name]
            start, stop = max(first, columns.start), min(first + flat.shape[1], columns.stop)
            if start < stop:
                square = flat[:, start - first : stop - first].square()
                values[name][target, start - columns.start : stop - columns.start] = square


def _groups(gradients: PerSampleGradients, means: SquareMeans) -> Iterator[dict[str, slice]]:
    """Iterate over groups of weights, so small that their values stay within ``chunk_bytes``."""
    room = max(1, gradients.chunk_bytes // (gradients.total * _COPIES * 8))  # as of float64
    group: dict[str, slice] = {}
    used = 0
    for name, value in means.fisher[0].items():
        if name not in means.fisher[1]:
            continue
        start = 0
        while start < value.numel():
            stop = min(value.numel(), start + room - used)
            group[name] = slice(start, stop)
            used += stop - start
            start = stop
            if used >= room:
                yield group
                group, used = {}, 0
    if group:
        yield group
