"""Fisher information of any network and loss by a plain loop; how often routes are chosen."""

import pytest
from naive_gradients import assert_close, energy, mean_squares

from avalanche_cetl import fisher_information
from avalanche_cetl.information.gradients import dispatch, per_sample


def _naive_fisher(model, x, loss=energy, targets=None):
    parts = (x,) if targets is None else (x, targets)
    rows = zip(*(part.split(1) for part in parts), strict=True)
    return mean_squares(model, [loss(model(one), *given)[0] for one, *given in rows])


@pytest.fixture
def naive_fisher():
    return _naive_fisher


@pytest.fixture
def assert_exact():
    def check(model, x, loss=energy, targets=None, **options):
        found = fisher_information(model, x, loss, targets=targets, **options)
        wanted = _naive_fisher(model, x, loss, targets)
        assert_close(found, wanted)

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
