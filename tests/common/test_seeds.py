import random

import numpy as np
import pytest
import torch

from avalanche_cetl.common.seeds import seeded


def draws():
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_draws_depend_on_the_text_alone():
    with seeded("a"):
        first = draws()
    draws()
    with seeded("a"):
        assert draws() == first
    with seeded("b"):
        assert not set(draws()) & set(first)


def test_the_global_generators_go_on_as_if_nothing_was_drawn():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    wanted = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with pytest.raises(KeyError), seeded("a"):
        draws()
        raise KeyError
    assert draws() == wanted
