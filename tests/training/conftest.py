"""Small benchmarks for coupled networks."""

import pytest

from avalanche_cetl import adaptation_benchmark, transfer_benchmark


@pytest.fixture
def adaptation(digits):
    return adaptation_benchmark(digits(30, seed=1), digits(36, shift=0.1), digits(18, seed=2))


@pytest.fixture
def benchmark(digits):
    """A benchmark whose rows fill five mini-batches and a half."""
    return transfer_benchmark(digits(44), digits(20, seed=1))
