"""Relative Fisher information (eq. 9): how much two tasks' Fisher values know of each other.

``RF_i = I(F_1i, F_2i)``, the mutual information, normalised to [0, 1], of the two
per-sample Fisher values of weight ``i`` over the same samples. The paper names no
estimator; three are here. They are pure functions of the per-sample values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl.information.fisher import (
    DEFAULT_CHUNK_BYTES,
    Loss,
    as_tuple,
    evaluation_mode,
    per_sample_gradients,
    select_params,
)

# Zeros (dead units) have no logarithm. A floor relative to the weight's own mean keeps RF
# invariant to rescaling either loss.
LOG_FLOOR = 1e-6


def gaussian(first: Tensor, second: Tensor) -> Tensor:
    """Linfoot's coefficient under a Gaussian copula fitted on log Fisher values.

    ``sqrt(1 - exp(-2 I))`` with ``I = -1/2 log(1 - rho^2)`` is ``|rho|``, the absolute
    correlation of ``log(F_1 + eps)`` and ``log(F_2 + eps)``, where ``eps`` is 1e-6 of the
    weight's mean Fisher value.

    :param first: per-sample values ``(N, P)``, >= 0.
    :param second: the same for the other task, same samples in the same order.
    :return: ``(P,)`` in [0, 1]; 0 where either task's values are constant.
    """
    return _absolute_correlation(_log(first), _log(second))


def rank(first: Tensor, second: Tensor) -> Tensor:
    """Linfoot's coefficient with normal scores of the ranks in place of logarithms.

    Ties get their average rank, so dead units are not ordered by accident.

    :param first: per-sample values ``(N, P)``.
    :param second: the same for the other task.
    :return: ``(P,)`` in [0, 1]; 0 where either task's values are constant.
    """
    return _absolute_correlation(_normal_scores(first), _normal_scores(second))


def default_bins(samples: int) -> int:
    """Give the number of quantile bins: ``sqrt(N / 5)``, at least 2.

    Five expected samples a cell under independence, Cochran's rule of thumb.
    """
    return max(2, int((samples / 5) ** 0.5))


def histogram(first: Tensor, second: Tensor, bins: int | None = None) -> Tensor:
    """Plug-in mutual information over quantile bins, over the mean of the two entropies.

    ``2 I(A, B) / (H(A) + H(B))`` with ``A`` and ``B`` the bins of the two values: the
    arithmetic normaliser, scikit-learn's default. Equal values always share a bin.
    The plug-in estimate is biased upwards for few samples.

    :param first: per-sample values ``(N, P)``.
    :param second: the same for the other task.
    :param bins: bins per axis; None for :func:`default_bins`.
    :return: ``(P,)`` in [0, 1]; 0 where either task's values are constant.
    """
    n = len(first)
    bins = default_bins(n) if bins is None else bins
    if bins < 2:
        raise ValueError(f"bins={bins}: mutual information needs at least 2 bins.")
    a, b = quantile_bins(first, bins), quantile_bins(second, bins)
    cells = (a * bins + b).T
    joint = torch.zeros(cells.shape[0], bins * bins, dtype=first.dtype, device=first.device)
    joint.scatter_add_(1, cells, torch.ones_like(cells, dtype=first.dtype))
    joint = (joint / n).view(-1, bins, bins)
    entropy_a, entropy_b = _entropy(joint.sum(2)), _entropy(joint.sum(1))
    information = entropy_a + entropy_b - _entropy(joint.flatten(1))
    mean = (entropy_a + entropy_b) / 2
    constant = (entropy_a <= 0) | (entropy_b <= 0)
    value = information / torch.where(constant, torch.ones_like(mean), mean)
    return torch.where(constant, torch.zeros_like(value), value).clamp(0, 1)


def quantile_bins(values: Tensor, bins: int) -> Tensor:
    """Put each column's values into quantile bins 0 ... bins-1; ties share the lowest bin.

    :param values: ``(N, P)``.
    :return: int64 ``(N, P)``.
    """
    below, _ = _ranks(values)
    return (below * bins) // len(values)


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def _log(values: Tensor) -> Tensor:
    mean = values.mean(0, keepdim=True)
    tiny = torch.finfo(values.dtype).tiny
    return torch.log(values / mean.clamp_min(tiny) + LOG_FLOOR)


def _ranks(values: Tensor) -> tuple[Tensor, Tensor]:
    """For each value the number of smaller values, and of smaller or equal ones, by column."""
    columns = values.T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns, right=False)
    not_above = torch.searchsorted(ordered, columns, right=True)
    return below.T, not_above.T


def _normal_scores(values: Tensor) -> Tensor:
    below, not_above = _ranks(values)
    quantile = (below + not_above).to(values.dtype) / (2 * len(values))
    return torch.special.ndtri(quantile)


def _absolute_correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(0), b - b.mean(0)
    spread_a, spread_b = a.square().mean(0), b.square().mean(0)
    # Rounding leaves about (eps * |log eps|)^2 of variance in a constant column.
    floor = (torch.finfo(a.dtype).eps * 64) ** 2
    constant = (spread_a <= floor) | (spread_b <= floor)
    product = torch.where(constant, torch.ones_like(spread_a), spread_a * spread_b)
    value = (a * b).mean(0).abs() / product.sqrt()
    return torch.where(constant, torch.zeros_like(value), value).clamp(0, 1)


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian,
    "rank": rank,
    "histogram": histogram,
}


def check_estimator(estimator: str) -> None:
    """Raise ValueError unless the estimator is one of ``gaussian``, ``rank``, ``histogram``."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is not known. Allowed: {sorted(ESTIMATORS)}.")


def relative_fisher(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    losses: tuple[Loss, Loss],
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    *,
    targets: tuple[Any, Any] = (None, None),
    estimator: str = "gaussian",
    normalize_samples: bool = False,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> dict[str, Tensor]:
    """Relative Fisher information of two losses on the same samples (eq. 9).

    Symmetric in the two losses, and invariant to rescaling either of them. A weight's own
    draw noise counts: with independently *sampled* targets the two tasks share less than
    with the losses themselves.

    :param model: any module; called as ``model(*inputs)``, in eval mode. It may give several
        outputs, of which each loss reads its own.
    :param inputs: a tensor ``(N, ...)``, or a tuple of such tensors.
    :param losses: two callables ``(outputs, targets) -> (N,)``.
    :param params: names of the parameters to measure; default: all that require a gradient.
    :param targets: what each loss gets as its second argument, or None.
    :param estimator: ``"gaussian"``, ``"rank"`` or ``"histogram"``.
    :param normalize_samples: divide each sample's gradient by its norm over all measured
        weights first. Hard samples have large gradients under every loss; this takes that
        common scale out.
    :param chunk_bytes: bound on the per-sample values held at once; parameters go in groups.
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
        normalize_samples=normalize_samples,
        chunk_bytes=chunk_bytes,
    )[1]


def fisher_and_relative(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    losses: tuple[Loss, Loss],
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    *,
    targets: tuple[Any, Any] = (None, None),
    estimator: str = "gaussian",
    normalize_samples: bool = False,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Fisher information of the first loss, and its relative Fisher with the second.

    One set of per-sample gradients serves both. See :func:`relative_fisher` for arguments.
    ``normalize_samples`` touches the relative Fisher only, never the Fisher information.

    :return: ``(fisher, relative)``, dicts keyed by parameter name.
    """
    check_estimator(estimator)
    parts = as_tuple(inputs)
    chosen = select_params(model, params)
    pairs = list(zip(losses, targets, strict=True))
    fisher: dict[str, Tensor] = {}
    relative: dict[str, Tensor] = {}
    with evaluation_mode(model):
        norms = (
            _sample_norms(model, parts, pairs, chosen, chunk_bytes) if normalize_samples else None
        )
        for group in _groups(chosen, len(parts[0]), chunk_bytes):
            values = _per_sample_values(model, parts, pairs, group, chunk_bytes)
            for name, parameter in group.items():
                first, second = values[0][name], values[1][name]
                fisher[name] = first.mean(0).view_as(parameter)
                if norms is not None:
                    first, second = first / norms[0], second / norms[1]
                relative[name] = ESTIMATORS[estimator](first, second).view_as(parameter)
    return fisher, relative


def _per_sample_values(
    model: nn.Module,
    parts: tuple[Tensor, ...],
    pairs: list[tuple[Loss, Any]],
    group: dict[str, Tensor],
    chunk_bytes: int,
) -> list[dict[str, Tensor]]:
    """Squared per-sample gradients of a group of parameters: per loss, name -> ``(N, P)``."""
    rows: list[dict[str, list[Tensor]]] = [{name: [] for name in group} for _ in pairs]
    for chunk in per_sample_gradients(model, parts, pairs, group, chunk_bytes=chunk_bytes):
        for task, gradients in zip(rows, chunk, strict=True):
            for name, value in gradients.items():
                task[name].append(value.flatten(1).square())
    return [{name: torch.cat(values) for name, values in task.items()} for task in rows]


def _sample_norms(
    model: nn.Module,
    parts: tuple[Tensor, ...],
    pairs: list[tuple[Loss, Any]],
    chosen: dict[str, Tensor],
    chunk_bytes: int,
) -> list[Tensor]:
    """Squared gradient norm of every sample over all measured weights, ``(N, 1)`` a loss."""
    norms: list[list[Tensor]] = [[] for _ in pairs]
    for chunk in per_sample_gradients(model, parts, pairs, chosen, chunk_bytes=chunk_bytes):
        for task, gradients in zip(norms, chunk, strict=True):
            squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
            task.append(torch.stack(squares).sum(0).unsqueeze(1))
    tiny = torch.finfo(norms[0][0].dtype).tiny
    return [torch.cat(task).clamp_min(tiny) for task in norms]


def _groups(params: dict[str, Tensor], samples: int, chunk_bytes: int) -> list[dict[str, Tensor]]:
    """Split parameters so that the values of a group stay within ``chunk_bytes`` (two tasks)."""
    groups: list[dict[str, Tensor]] = []
    used = chunk_bytes
    for name, parameter in params.items():
        need = 2 * samples * parameter.numel() * parameter.element_size()
        if used + need > chunk_bytes:
            groups.append({})
            used = 0
        groups[-1][name] = parameter
        used += need
    return groups
