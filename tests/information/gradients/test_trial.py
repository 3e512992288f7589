"""Verdicts on routes: right, wrong, mixes samples, unseen."""

import pytest
import torch
from torch import nn

from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information.gradients.plain import PlainGradients
from avalanche_cetl.information.gradients.routes import Route
from avalanche_cetl.information.gradients.trial import Trial, Verdict


class _Own(nn.Linear):
    """A Linear layer with a forward pass of its own."""

    def forward(self, x):
        return super().forward(x).tanh()


class _Centred(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, x):
        return x - x.mean(0)


class _Gate(nn.Module):
    def forward(self, x):
        return 0 * x


def _verdicts(model, kind="layer"):
    torch.manual_seed(0)
    model, two = model.double().eval(), [torch.randn(2, 4, dtype=torch.float64)]
    params = dict(model.named_parameters())
    plain = PlainGradients(model, two, params, ModelState(model))
    trial = Trial(model, two, params, plain, losses=1)
    routes = {name: Route(kind, [tuple(name.split("."))]) for name in params}
    return trial.verdicts(routes), trial


@pytest.mark.parametrize("kind", ["layer", "module"])
def test_routes_of_torchs_layers_are_right(kind):
    found, trial = _verdicts(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), kind)
    assert set(found.values()) == {Verdict.RIGHT}
    assert all(verdict.accepted for verdict in found.values())
    assert trial.sample_bytes > 0 and not trial.problems


def test_the_closed_form_of_a_layer_with_another_forward_pass_is_wrong():
    found, trial = _verdicts(nn.Sequential(nn.Linear(4, 3), _Own(3, 2)))
    assert found == {
        "0.weight": Verdict.RIGHT,
        "0.bias": Verdict.RIGHT,
        "1.weight": Verdict.WRONG,
        "1.bias": Verdict.WRONG,
    }
    assert not Verdict.WRONG.accepted
    assert trial.problems["1.bias"] == "it gives other gradients than autograd"


def test_no_route_is_accepted_where_samples_are_mixed():
    found, _ = _verdicts(nn.Sequential(nn.Linear(4, 3), _Centred(), nn.Linear(3, 2)))
    assert set(found.values()) == {Verdict.MIXES_SAMPLES}
    assert not Verdict.MIXES_SAMPLES.accepted


def test_a_dead_layer_of_torch_is_accepted_unseen_and_ones_own_is_not():
    found, _ = _verdicts(nn.Sequential(nn.Linear(4, 3), _Own(3, 2), _Gate(), nn.Linear(2, 2)))
    assert found["0.weight"] is Verdict.UNSEEN and Verdict.UNSEEN.accepted
    assert found["1.weight"] is Verdict.WRONG
    assert found["3.bias"] is Verdict.RIGHT
