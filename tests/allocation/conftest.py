"""The benchmark on which importances are measured in training."""

import sys
from pathlib import Path

import pytest

from avalanche_cetl import transfer_benchmark

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # its coupled_runs


@pytest.fixture
def transfer(digits):
    return transfer_benchmark(digits(36), digits(18, seed=1), labels_per_class=5)
