"""Fisher information of any network and loss by a plain loop; how often routes are chosen."""

import pytest
import torch

from avalanche_cetl import fisher_information
from avalanche_cetl.information.gradients import dispatch, per_sample


def _energy(out):
    """A loss per sample without targets."""
    return out.logsumexp(1)


def _naive_fisher(model, x, loss=_energy, targets=None):
    params = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for i in range(len(x)):
        given = () if targets is None else (targets[i : i + 1],)
        value = loss(model(x[i : i + 1]), *given)[0]
        gradients = torch.autograd.grad(value, params.values(), allow_unused=True)
        for name, g in zip(params, gradients, strict=True):
            total[name] += 0 if g is None else (g.to_dense() if g.is_sparse else g) ** 2 / len(x)
    return total


@pytest.fixture
def naive_fisher():
    return _naive_fisher


@pytest.fixture
def assert_exact():
    def check(model, x, loss=_energy, targets=None, **options):
        found = fisher_information(model, x, loss, targets=targets, **options)
        wanted = _naive_fisher(model, x, loss, targets)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14, msg=name)

    return check


@pytest.fixture
def counted(monkeypatch):
    """How often routes were chosen, and how often kept ones were verified."""
    counts = {"chosen": 0, "verified": 0}
    choose, verify = dispatch._dispatched, per_sample.verify

    def chosen(*args):
        counts["chosen"] += 1
        return choose(*args)

    def verified(*args):
        counts["verified"] += 1
        return verify(*args)

    monkeypatch.setattr(dispatch, "_dispatched", chosen)
    monkeypatch.setattr(per_sample, "verify", verified)
    return counts
