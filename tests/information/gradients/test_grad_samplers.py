"""Grad samplers of torch's layers, each alone against autograd sample by sample."""

import pytest
import torch
from networks import Of
from torch import nn

from avalanche_cetl.information.gradients.grad_samplers import (
    depthwise_product,
    embedding_square_sum,
    grad_sampler_of,
    is_depthwise,
)
from avalanche_cetl.information.gradients.grad_samplers_rnn import can_be_unrolled
from avalanche_cetl.information.gradients.per_sample import per_sample_gradients
from avalanche_cetl.information.gradients.second_moments import square_means

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "tokens": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding="same"), (2, 6, 6)),
    "many channels": (lambda: nn.Conv2d(8, 3, (2, 3)), (8, 4, 4)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=(1, 0)), (4, 4, 5)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 3, 3)),
    "transposed groups": (lambda: nn.ConvTranspose1d(4, 4, 3, groups=2), (4, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(3).eval(), (3, 4, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "layer norm": (lambda: nn.LayerNorm(4), (5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_grad_samplers_of_a_layer_give_autograds_gradients(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().double()
    x = torch.randn(6, *shape, dtype=torch.float64)
    g = torch.randn_like(layer(x))
    for local, parameter in layer.named_parameters():
        sampler = grad_sampler_of(layer, local)
        gradients = sampler.function(layer, (x,), g)
        if sampler.factored:
            gradients = gradients.restore(gradients.left @ gradients.right)
        wanted = torch.stack(
            [
                torch.autograd.grad(layer(x[i : i + 1]), parameter, g[i : i + 1])[0]
                for i in range(len(x))
            ]
        )
        torch.testing.assert_close(gradients.reshape(wanted.shape), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 3, 4, stride=3, padding=1, groups=3), (3, 11)),
        (nn.Conv2d(4, 4, (2, 3), dilation=(2, 1), padding="same", groups=4), (4, 6, 5)),
        (nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="reflect", groups=2), (2, 6, 6)),
        (nn.Conv3d(2, 2, 2, groups=2, bias=False), (2, 3, 4, 3)),
    ],
)
def test_the_gradients_of_a_depthwise_convolution_are_the_products_of_its_factors(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    g = torch.randn_like(layer(x))
    factors = grad_sampler_of(layer, "weight").function(layer, (x,), g)
    assert is_depthwise(layer)
    torch.testing.assert_close(depthwise_product(layer, (x,), g), factors.left @ factors.right)


def test_a_convolution_of_several_channels_is_not_depthwise():
    layers = nn.Conv2d(1, 1, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(2, 4, 3, groups=2)
    assert not any(map(is_depthwise, (*layers, nn.Linear(2, 2))))


@pytest.mark.parametrize("padding", [None, 2])
def test_squares_of_an_embeddings_gradients_are_summed_without_a_table_per_sample(padding):
    torch.manual_seed(0)
    layer = nn.Embedding(7, 3, padding_idx=padding).double()
    x, g = torch.randint(7, (5, 4)), torch.randn(5, 4, 3).double()
    gradients = grad_sampler_of(layer, "weight").function(layer, (x,), g)
    torch.testing.assert_close(embedding_square_sum(layer, x, g), gradients.square().sum(0))


def test_an_embedding_that_counts_its_rows_has_no_closed_form():
    assert grad_sampler_of(nn.Embedding(3, 2, scale_grad_by_freq=True), "weight") is None


def _recurrent(layer):
    """Class logits from the last state of a recurrent layer."""
    model = Of(lambda m, x: m.head(m.layer(x)[0][:, -1]), layer=layer(), head=nn.Linear(4, 3))
    return model.double()


RECURRENT = [
    lambda: nn.RNN(3, 4, batch_first=True),
    lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"),
    lambda: nn.GRU(3, 4, num_layers=2, batch_first=True),
    lambda: nn.LSTM(3, 4, batch_first=True, bias=False),
    lambda: nn.LSTM(3, 2, batch_first=True, bidirectional=True),
    lambda: nn.LSTM(3, 5, batch_first=True, proj_size=4),
]


@pytest.mark.parametrize("layer", RECURRENT)
def test_fisher_of_an_unrolled_recurrent_layer_equals_the_loop(layer, assert_exact):
    torch.manual_seed(0)
    model = _recurrent(layer)
    assert can_be_unrolled(model.layer)
    assert_exact(model, torch.randn(6, 5, 3).double())


@pytest.mark.parametrize("layer", RECURRENT)
def test_the_closed_form_of_a_recurrent_layer_is_autograds(layer):
    """What is another gradient than autograd's would be computed by a loop, and be right too."""
    torch.manual_seed(0)
    model = _recurrent(layer)
    x, y = torch.randn(6, 5, 3).double(), torch.arange(6) % 3
    with per_sample_gradients(model, x, [("empirical", y)], None, 2**29, None) as gradients:
        gradients.reduce(square_means)
        assert {route.kind for route in gradients.routes.values()} == {"closed_form"}


def test_a_recurrent_layer_with_time_first_is_not_unrolled():
    assert not can_be_unrolled(nn.LSTM(3, 4))
