"""A benchmark whose rows fill five mini-batches and a half."""

import sys
from pathlib import Path

import pytest

from avalanche_cetl import transfer_benchmark

sys.path.insert(0, str(Path(__file__).parent))  # the tests share engine_runs


@pytest.fixture
def benchmark(digits):
    return transfer_benchmark(digits(44), digits(20, seed=1))
