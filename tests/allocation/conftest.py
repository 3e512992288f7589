"""The benchmark on which importances are measured in training."""

import pytest

from avalanche_cetl import transfer_benchmark


@pytest.fixture
def transfer(digits):
    return transfer_benchmark(digits(36), digits(18, seed=1), labels_per_class=5)
