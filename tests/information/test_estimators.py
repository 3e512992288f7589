import math

import ennemi
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata
from sklearn.metrics import normalized_mutual_info_score

from avalanche_cetl.information import relative_fisher
from avalanche_cetl.information.estimators import (
    ESTIMATORS,
    LOG_FLOOR,
    estimated,
    gaussian,
    quantile_bins,
    rank,
    register_estimator,
)


def _pair(n, p=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(n, p, generator=g, dtype=torch.float64)
    mix = torch.linspace(0, 1, p, dtype=torch.float64)
    a = common + 0.3 * torch.randn(n, p, generator=g, dtype=torch.float64)
    b = mix * common + (1 - mix) * torch.randn(n, p, generator=g, dtype=torch.float64)
    return a.square(), b.square()


def _correlation(a, b):
    return abs(float(np.corrcoef(a, b)[0, 1]))


def _naive_gaussian(a, b):
    return _correlation(*(np.log(v / v.mean() + LOG_FLOOR) for v in (a, b)))


def _naive_rank(a, b):
    return _correlation(*(norm.ppf((rankdata(v) - 0.5) / len(v)) for v in (a, b)))


def _naive_bins(v, bins):
    return [sum(other < value for other in v) * bins // len(v) for value in v]


def _naive_histogram(a, b):
    bins = {20: 2, 64: 3, 256: 7}[len(a)]  # sqrt(N / 5)
    return normalized_mutual_info_score(_naive_bins(a, bins), _naive_bins(b, bins))


NAIVE = {"gaussian": _naive_gaussian, "rank": _naive_rank, "histogram": _naive_histogram}


@pytest.mark.parametrize(("n", "ties"), [(20, False), (64, False), (256, False), (64, True)])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_equals_a_naive_computation_weight_by_weight(name, n, ties):
    a, b = _pair(n)
    if ties:  # as scipy and scikit-learn handle them
        a[a < 0.3], b[b < 0.3] = 0.0, 0.0
    found = ESTIMATORS[name](a, b)
    for i in range(a.shape[1]):
        assert math.isclose(
            float(found[i]), NAIVE[name](a[:, i].numpy(), b[:, i].numpy()), abs_tol=1e-9
        )


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("estimator", [gaussian, rank])
def test_linfoot_agrees_with_ennemi_on_a_gaussian_copula(estimator, rho):
    rng = np.random.default_rng(1)
    z = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 4000)
    values = torch.from_numpy(np.exp(2 * z))
    found = float(estimator(values[:, :1], values[:, 1:]))
    independent = float(ennemi.estimate_mi(z[:, 1], z[:, 0], k=20, normalize=True).squeeze())
    # The coefficient's slope in the information is infinite at 0: compare its squares there.
    assert abs(found**2 - max(independent, 0) ** 2) < 0.03
    assert rho == 0 or abs(found - independent) < 0.04
    assert abs(found - rho) < 0.04


@pytest.mark.parametrize("name", ESTIMATORS)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6), n=st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_range_symmetry_and_invariance(name, seed, scale, n):
    estimator = ESTIMATORS[name]
    a, b = _pair(n, seed=seed)
    a[:, 0] = 3.0
    b[:, 1] = 0.0
    found = estimator(a, b)
    assert (found >= 0).all() and (found <= 1).all()
    assert found[0] == 0 and found[1] == 0
    torch.testing.assert_close(estimator(b, a), found, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimator(scale * a, b), found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_identical_tasks_are_fully_related_and_independent_ones_hardly(name):
    a, _ = _pair(1000)
    other, _ = _pair(1000, seed=9)
    torch.testing.assert_close(ESTIMATORS[name](a, a), torch.ones(5).double())
    assert ESTIMATORS[name](a, other).max() < (0.15 if name != "histogram" else 0.1)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_constants_give_zero_in_float32_too(name):
    a, b = (v.float() for v in _pair(100))
    a[:, 2] = 1e-3 / 7
    assert ESTIMATORS[name](a, b)[2] == 0


def test_quantile_bins_are_even_and_keep_ties_together():
    values = torch.randn(100, 3).double()
    counts = torch.bincount(quantile_bins(values, 5)[:, 0])
    assert counts.tolist() == [20] * 5
    assert quantile_bins(torch.zeros(10, 1).double(), 4).unique().tolist() == [0]


@pytest.fixture
def registered():
    """Register an estimator for one test."""
    yield lambda function: register_estimator("own")(function)
    ESTIMATORS.pop("own", None)


def half(first):
    return torch.full((first.shape[1],), 0.5, dtype=first.dtype)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda a, b: half(a) * 6, r"gave values outside \[0, 1\] \(to 3\)"),
        (lambda a, b: -half(a), r"gave values outside \[0, 1\] \(from -0.5\)"),
        (lambda a, b: half(a) * torch.nan, "gave NaN"),
        (lambda a, b: a * b, r"gave \(8, 5\) for 5 weights: one value a weight"),
        (lambda a, b: half(a)[:-1], r"gave \(4,\) for 5 weights"),
        (lambda a, b: torch.tensor(0.5), r"gave \(\) for 5 weights"),
        (lambda a, b: half(a).numpy(), "gave array.*: a tensor"),
        (lambda a, b: None, r"gave None: a tensor \(5,\)"),
    ],
    ids=["large", "negative", "NaN", "matrix", "too few", "one", "numpy", "None"],
)
def test_what_an_estimator_of_a_user_may_not_give_is_refused(registered, function, told):
    registered(function)
    with pytest.raises((ValueError, TypeError), match=f"estimator 'own' {told}"):
        estimated("own", *_pair(8))


def test_rounding_of_a_users_estimator_is_clamped(registered):
    registered(lambda a, b: half(a) * 2 + 5e-7)
    assert torch.equal(estimated("own", *_pair(8)), torch.ones(5).double())


def test_relative_fisher_refuses_what_a_users_estimator_may_not_give(registered):
    registered(lambda a, b: half(a) * 6)
    losses = (lambda outputs: outputs.square().sum(1),) * 2
    with pytest.raises(ValueError, match="estimator 'own' gave values outside"):
        relative_fisher(torch.nn.Linear(3, 2), torch.rand(6, 3), losses, estimator="own")
