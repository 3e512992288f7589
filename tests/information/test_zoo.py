"""Fisher information of networks of many kinds, against a plain loop in float64."""

import importlib.util
from pathlib import Path

import pytest
import torch

from avalanche_cetl import fisher_information

_spec = importlib.util.spec_from_file_location("zoo", Path(__file__).with_name("zoo.py"))
zoo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(zoo)


def test_there_are_at_least_sixty_networks():
    assert len(zoo.NETWORKS) >= 60


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_fisher_information_equals_a_plain_loop_and_leaves_everything_as_it_was(name):
    network = zoo.NETWORKS[name]
    model, x = network.make(3)
    targets = torch.tensor([0, 1, 2])
    wanted = network.naive(x, targets)
    given, state = x.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    found = fisher_information(model, x, network.loss, targets=targets)
    assert found.keys() == wanted.keys()
    largest = max(float(torch.linalg.vector_norm(value)) for value in wanted.values())
    for key, value in wanted.items():
        assert not found[key].is_complex()
        error = float(torch.linalg.vector_norm(found[key] - value))
        # Gradients that are 0 but for rounding (the bias of a key) are rounding here too.
        assert error <= 1e-9 * float(torch.linalg.vector_norm(value)) + 1e-24 * largest, key
    assert torch.equal(x, given)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    assert all(p.grad is None for p in model.parameters())
