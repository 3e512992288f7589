"""The state of every global random number generator."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from avalanche_cetl.checkpoints.errors import CheckpointError


def random_states() -> dict[str, Any]:
    """Return the states of torch's, CUDA's, numpy's and Python's generators, as plain data."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, np.asarray(keys), position, has_gauss, gauss),
        "python": (version, numbers, next_gauss),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set the states of all generators.

    States of CUDA devices that this machine does not have are left out.

    :raises CheckpointError: when they are no such states.
    """
    try:
        torch.set_rng_state(states["torch"])
        if torch.cuda.is_available():
            for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, device)
        np.random.set_state(states["numpy"])
        random.setstate(states["python"])
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError, IndexError) as why:
        raise CheckpointError(f"the checkpoint's random states are not in order: {why}") from why
