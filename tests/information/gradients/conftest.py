"""Fisher information of any network and loss by a plain loop; how often plans are made."""

import pytest
import torch

from avalanche_cetl import fisher_information
from avalanche_cetl.information.gradients import plan
from avalanche_cetl.information.gradients.engine import PerSampleGradients


def _naive_fisher(model, x, loss):
    params = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]))[0]
        found = torch.autograd.grad(value, params.values(), allow_unused=True)
        for name, g in zip(params, found, strict=True):
            total[name] += 0 if g is None else g**2 / len(x)
    return total


@pytest.fixture
def naive_fisher():
    return _naive_fisher


@pytest.fixture
def assert_exact():
    def check(model, x, loss):
        found = fisher_information(model, x, loss)
        for name, value in _naive_fisher(model, x, loss).items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14, msg=name)

    return check


@pytest.fixture
def counted(monkeypatch):
    """How often a plan was made, and how often a kept one was proven."""
    counts = {"plans": 0, "proofs": 0}
    make, prove = plan._plan, PerSampleGradients._prove

    def planned(*args):
        counts["plans"] += 1
        return make(*args)

    def proven(*args):
        counts["proofs"] += 1
        return prove(*args)

    monkeypatch.setattr(plan, "_plan", planned)
    monkeypatch.setattr(PerSampleGradients, "_prove", proven)
    return counts
