"""Estimators of the normalised mutual information of two tasks' Fisher values.

Pure functions of per-sample values ``(N, P)``: one column a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

#: What is added to a Fisher value over its weight's mean before the logarithm: zeros (dead units)
#: have none. A floor relative to the weight's own mean keeps RF invariant to rescaling either loss.
#: Squares of normally distributed gradients lie below it once in 1,250 samples (the gradient is
#: below 1e-3 of its standard deviation), so it hardly touches a weight that is alive; and a zero
#: counts as -13.8, which is 5.6 standard deviations (of 2.2) below the mean logarithm.
LOG_FLOOR = 1e-6
#: Five expected samples a cell under independence, Cochran's rule of thumb.
_SAMPLES_PER_CELL = 5
#: How far values of a user's estimator may lie outside of [0, 1]: they are clamped, as ours are.
_ROUNDING = 1e-6
#: Factors of the variance floor, see :func:`correlation`.
_ROUNDED_VALUES, _ROUNDED_SUMS = 64, 16


def gaussian(first: Tensor, second: Tensor) -> Tensor:
    """Compute Linfoot's coefficient under a Gaussian copula fitted on log Fisher values.

    ``sqrt(1 - exp(-2 I))`` with ``I = -1/2 log(1 - rho^2)`` is ``|rho|``, the absolute
    correlation of ``log(F_1 + eps)`` and ``log(F_2 + eps)``, where ``eps`` is 1e-6 of the
    weight's mean Fisher value.

    :param first: per-sample values ``(N, P)``, >= 0.
    :param second: the same for the other task, same samples in the same order.
    :return: ``(P,)`` in [0, 1]; 0 where either task's values are constant.
    """
    return _absolute_correlation(_log(first), _log(second))


def rank(first: Tensor, second: Tensor) -> Tensor:
    """Compute Linfoot's coefficient with normal scores of the ranks in place of logarithms.

    Ties get their average rank, so dead units are not ordered by accident.

    :param first: per-sample values ``(N, P)``.
    :param second: the same for the other task.
    :return: ``(P,)`` in [0, 1]; 0 where either task's values are constant.
    """
    return _absolute_correlation(_normal_scores(first), _normal_scores(second))


def histogram(first: Tensor, second: Tensor) -> Tensor:
    """Compute plug-in mutual information over quantile bins, over the mean of the two entropies.

    ``2 I(A, B) / (H(A) + H(B))`` with ``A`` and ``B`` the bins of the two values: the
    arithmetic normaliser, scikit-learn's default. There are ``sqrt(N / 5)`` bins, at least 2, and
    equal values always share one. The plug-in estimate is biased upwards for few samples.

    :param first: per-sample values ``(N, P)``.
    :param second: the same for the other task.
    :return: ``(P,)`` in [0, 1]; 0 where either task's values are constant.
    """
    n = len(first)
    bins = max(2, int((n / _SAMPLES_PER_CELL) ** 0.5))
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
    """Return the quantile bin, 0 ... bins-1, of each value in its column; ties share the lowest.

    :param values: ``(N, P)``.
    :param bins: how many, >= 1.
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
    """Return how many values are smaller than each value, and how many not greater, by column."""
    columns = values.T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns, right=False)
    not_above = torch.searchsorted(ordered, columns, right=True)
    return below.T, not_above.T


def _normal_scores(values: Tensor) -> Tensor:
    below, not_above = _ranks(values)
    quantile = (below + not_above).to(values.dtype) / (2 * len(values))
    scores: Tensor = torch.special.ndtri(quantile)
    return scores


def _absolute_correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(0), b - b.mean(0)
    return correlation(a.square().mean(0), b.square().mean(0), (a * b).mean(0))


def correlation(
    spread_a: Tensor, spread_b: Tensor, product: Tensor, size: float | Tensor = 0.0
) -> Tensor:
    """Return the absolute correlation from two variances and the covariance; 0 without variance.

    A column of equal values has no correlation, but rounding gives it a variance above 0, and the
    quotient would be noise. Variances up to a floor therefore count as 0. Rounding enters in two
    ways, and the floor has a term for each, with eps of the values' type.

    - Values minus their rounded mean: a standard deviation of a few eps times the value. The
      constant columns that occur are those of ``log(LOG_FLOOR) = -13.8``; measured with up to
      65,536 samples they have 40 eps in float32 and 8 eps in float64. The term is ``(64 eps)^2``.
    - Mean square minus squared mean (``size`` is that mean square): their rounding errors stay
      when they cancel. Measured: up to 10 eps of it with 256 samples. The term is ``16 eps size``.

    Where it breaks: a genuine standard deviation below ``4 sqrt(eps)`` of the root mean square
    (1.4e-3 of it in float32, 6e-8 in float64) is taken for a constant. And the second error grows
    with the number of samples where sums are made one sample at a time (75 eps at 1,000): such a
    constant column is not recognised. Its covariance is rounding too, so its correlation comes out
    at 5e-5 instead of 0.

    :param spread_a: variances, ``(P,)`` or any other shape.
    :param spread_b: those of the other task.
    :param product: covariances.
    :param size: mean square of the values, where the variances come out of differences.
    """
    eps = torch.finfo(spread_a.dtype).eps
    floor = (eps * _ROUNDED_VALUES) ** 2 + _ROUNDED_SUMS * eps * size
    constant = (spread_a <= floor) | (spread_b <= floor)
    spreads = torch.where(constant, torch.ones_like(spread_a), spread_a).sqrt()
    spreads = spreads * torch.where(constant, torch.ones_like(spread_b), spread_b).sqrt()
    return torch.where(constant, torch.zeros_like(product), product.abs() / spreads).clamp(0, 1)


#: Names of this package's estimators of relative Fisher information.
Estimator = Literal["gaussian", "rank", "histogram"]
ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian": gaussian,
    "rank": rank,
    "histogram": histogram,
}
_Function = TypeVar("_Function", bound=Callable[[Tensor, Tensor], Tensor])


def register_estimator(name: str) -> Callable[[_Function], _Function]:
    """Register an estimator of relative Fisher information of one's own, by a name.

    The decorated function gets the per-sample Fisher values of some weights for the two tasks,
    ``(N, P)`` each, >= 0, with the same samples in the same order, and returns one value a weight,
    ``(P,)``, in [0, 1]; other shapes and values are refused where they come. Settings and
    checkpoints hold the name. Registering a name of one's own again replaces the function.

    :param name: for ``estimator=``.
    :return: a decorator that returns the function as it is.
    :raises ValueError: for a name of this package's.
    """
    if name in get_args(Estimator):
        raise ValueError(f"estimator {name!r} is this package's own: choose another name.")

    def register(function: _Function) -> _Function:
        ESTIMATORS[name] = function
        return function

    return register


def check_estimator(estimator: str) -> None:
    """Raise ValueError unless the estimator is this package's or was registered."""
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator={estimator!r} is not known. Allowed: {sorted(ESTIMATORS)}, and names that "
            "register_estimator was given."
        )


def estimated(estimator: str, first: Tensor, second: Tensor) -> Tensor:
    """Return what an estimator gives, ``(P,)`` in [0, 1]; one of the user's is checked.

    :param estimator: its name.
    :param first: per-sample values ``(N, P)``.
    :param second: the same for the other task.
    :raises TypeError: for what is no tensor.
    :raises ValueError: for values of another shape or outside [0, 1] by more than rounding.
    """
    values = ESTIMATORS[estimator](first, second)
    if estimator in get_args(Estimator):
        return values
    weights = first.shape[1]
    if not isinstance(values, Tensor):
        raise TypeError(f"estimator {estimator!r} gave {values!r}: a tensor ({weights},) please.")
    if values.shape != (weights,):
        raise ValueError(
            f"estimator {estimator!r} gave {tuple(values.shape)} for {weights} weights: one value "
            "a weight."
        )
    if values.isnan().any():
        raise ValueError(
            f"estimator {estimator!r} gave NaN: let it give 0 where the values do not vary."
        )
    low, high = float(values.min()), float(values.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        worst = f"from {low:.3g}" if low < -_ROUNDING else f"to {high:.3g}"
        raise ValueError(f"estimator {estimator!r} gave values outside [0, 1] ({worst}).")
    return values.clamp(0, 1)
