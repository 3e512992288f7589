"""Random draws that depend on a text alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(text: str) -> Iterator[None]:
    """Seed the global generators from a text; restore their states afterwards."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    # torch.manual_seed would also reach for every GPU.
    torch.default_generator.manual_seed(number & (2**63 - 1))
    np.random.seed(number & (2**32 - 1))
    random.seed(number)
    try:
        yield
    finally:
        torch.random.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
