"""Models that torch.func runs as a whole."""

import pytest
import torch
from torch import nn

from avalanche_cetl.information import fisher_and_relative


class _Mixing(nn.Module):
    """Mixes its samples, so that torch.func runs it; one parameter is never used."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x + 0.1 * x.mean(0))


@pytest.mark.parametrize("n", [2, 20])
def test_a_model_for_torch_func_may_have_an_unused_parameter(n):
    torch.manual_seed(0)
    model, x = _Mixing().double(), torch.randn(n, 4).double()
    fisher, relative = fisher_and_relative(
        model, x, (lambda out: out.square().sum(1), lambda out: out.exp().sum(1))
    )
    assert not fisher["unused"].any() and not relative["unused"].any()
    rows = [
        torch.autograd.grad(model(x[i : i + 1]).square().sum(), model.layer.weight)[0]
        for i in range(n)
    ]
    torch.testing.assert_close(fisher["layer.weight"], torch.stack(rows).square().mean(0))
