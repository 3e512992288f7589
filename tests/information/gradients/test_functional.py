"""Per-sample gradients by torch.func: of a whole model, and of one call of a module."""

import torch
from torch import nn

from avalanche_cetl.information.gradients.functional import call_gradients, current_autocast


def test_gradients_of_one_call_are_those_of_autograd_for_each_sample():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(5, 3, 4).double()
    g = torch.randn(5, 3, 4).double()
    params = dict(module.named_parameters())
    found = call_gradients(
        module, (x, x, x), {"need_weights": False}, g, params, (True,) * 3 + (False,)
    )
    for name, parameter in params.items():
        wanted = []
        for i in range(len(x)):
            one = x[i : i + 1]
            out = module(one, one, one, need_weights=False)[0]
            wanted.append(torch.autograd.grad(out, parameter, g[i : i + 1])[0])
        torch.testing.assert_close(found[name], torch.stack(wanted), rtol=1e-9, atol=1e-12)


def test_the_autocast_state_of_now_can_be_entered_later():
    with torch.autocast("cpu", torch.bfloat16):
        context = current_autocast(torch.device("cpu"))
    layer = nn.Linear(2, 2)
    assert layer(torch.ones(1, 2)).dtype is torch.float32
    with context():
        assert layer(torch.ones(1, 2)).dtype is torch.bfloat16
