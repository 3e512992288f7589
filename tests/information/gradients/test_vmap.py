"""Per-sample gradients by torch.func: of one call of a module, and of a whole model."""

import pytest
import torch
from networks import Of
from torch import nn

from avalanche_cetl.information import fisher_and_relative
from avalanche_cetl.information.gradients.vmap import call_gradients


def test_gradients_of_one_call_are_those_of_autograd_for_each_sample():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(5, 3, 4).double()
    g = torch.randn(5, 3, 4).double()
    params = dict(module.named_parameters())
    gradients = call_gradients(
        module, (x, x, x), {"need_weights": False}, g, params, (True,) * 3 + (False,)
    )
    for name, parameter in params.items():
        wanted = []
        for i in range(len(x)):
            one = x[i : i + 1]
            out = module(one, one, one, need_weights=False)[0]
            wanted.append(torch.autograd.grad(out, parameter, g[i : i + 1])[0])
        torch.testing.assert_close(gradients[name], torch.stack(wanted), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, 20])
def test_a_whole_model_may_have_an_unused_parameter(n, naive_fisher):
    """It mixes its samples, so that torch.func runs it whole."""
    torch.manual_seed(0)
    model = Of(
        lambda m, x: m.layer(x + 0.1 * x.mean(0)),
        layer=nn.Linear(4, 3), unused=nn.Parameter(torch.ones(3)),
    ).double()  # fmt: skip
    x = torch.randn(n, 4).double()
    square = lambda out: out.square().sum(1)  # noqa: E731
    fisher, relative = fisher_and_relative(model, x, (square, lambda out: out.exp().sum(1)))
    assert not fisher["unused"].any() and not relative["unused"].any()
    for name, value in naive_fisher(model, x, square).items():
        torch.testing.assert_close(fisher[name], value)
