import random

import numpy as np
import pytest
import torch

from avalanche_cetl import CheckpointError
from avalanche_cetl.checkpoints.parts import random_states, load_random_states


def draws():
    return [float(torch.rand(())), float(np.random.rand()), random.random()]


def test_all_generators_go_on_where_their_states_were_kept():
    states = random_states()
    first = draws()
    assert draws() != first
    load_random_states(states)
    assert draws() == first


@pytest.mark.parametrize(
    "change",
    [{"torch": torch.zeros(3, dtype=torch.uint8)}, {"python": (3, (1, 2), None)}],
    ids=list,
)
def test_states_of_no_generator_are_refused(change):
    states = random_states()
    with pytest.raises(CheckpointError, match="random states are not in order"):
        load_random_states(states | change)
    load_random_states(states)
