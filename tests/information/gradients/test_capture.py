"""What a loss has to return to be captured."""

import pytest
import torch
from naive_gradients import energy
from networks import Of
from torch import nn

from avalanche_cetl import fisher_information


def test_a_loss_that_is_not_per_sample_is_an_error():
    with pytest.raises(ValueError, match="one value per sample"):
        fisher_information(nn.Linear(3, 2), torch.randn(4, 3), lambda out: out.sum())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out: energy(out)[:4], "gave 4 values for 9 samples"),
        (lambda out: out.argmax(1), "no gradient"),
        (lambda out: energy(out).detach(), "no gradient"),
    ],
    ids=["too few", "whole numbers", "detached"],
)
def test_losses_without_a_gradient_of_each_sample_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        fisher_information(nn.Linear(6, 3), torch.randn(9, 6), loss)


def test_fisher_of_an_output_without_a_gradient_is_zero():
    torch.manual_seed(0)
    model = Of(lambda m, x: (m.layer(x), x), layer=nn.Linear(6, 3)).double()
    x = torch.randn(9, 6).double()
    found = fisher_information(model, x, lambda out: out[1].square().sum(1))
    assert not found["layer.weight"].any()
    assert fisher_information(model, x, lambda out: energy(out[0]))["layer.weight"].all()
