import sys
from pathlib import Path

import pytest

from avalanche_cetl import transfer_benchmark

sys.path.insert(0, str(Path(__file__).parent))  # the tests share saved_runs


@pytest.fixture
def benchmark(digits):
    return transfer_benchmark(digits(24), digits(12, seed=1), labels_per_class=5)


@pytest.fixture
def stream(digits):
    """Two experiences."""
    return transfer_benchmark([digits(15), digits(15, seed=1)], [digits(6)] * 2).train_stream
