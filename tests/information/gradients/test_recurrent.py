"""Recurrent layers, unrolled into linear layers that read every step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information
from avalanche_cetl.information.gradients.recurrent import unrolled


class Last(nn.Module):
    """Class logits from the last state of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.RNN(3, 4, batch_first=True),
        lambda: nn.GRU(3, 4, num_layers=2, batch_first=True),
        lambda: nn.LSTM(3, 4, batch_first=True, bias=False),
    ],
)
def test_fisher_of_an_unrolled_layer_equals_the_loop(layer):
    torch.manual_seed(0)
    model = Last(layer()).double()
    assert unrolled(model.layer)
    x, y = torch.randn(6, 5, 3).double(), torch.arange(6) % 3
    found = fisher_information(model, x, "empirical", targets=y)
    for name, parameter in model.named_parameters():
        total = torch.zeros_like(parameter)
        for i in range(len(x)):
            loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            total += torch.autograd.grad(loss, parameter)[0].square() / len(x)
        torch.testing.assert_close(found[name], total, rtol=1e-10, atol=1e-15)


def test_a_layer_with_time_first_is_not_unrolled():
    assert not unrolled(nn.LSTM(3, 4))
