"""How a target becomes a decoder: reversed layer by layer, or laid out from its maps."""

import pytest
import timm
import torch
from networks import Of
from torch import nn

from avalanche_cetl import CICNN, ReversedDecoder
from avalanche_cetl.models.unpool import Unpool


def test_maps_of_odd_size_get_their_size_back():
    target = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)
    )
    decoder = ReversedDecoder(target, (1, 7, 7))
    assert decoder.mirrored and decoder(torch.randn(1, 18)).shape == (1, 1, 7, 7)


def test_layers_are_the_targets_in_reverse_with_the_same_kernel_counts():
    target = CICNN(10, (3, 32, 32), width=0.5)
    decoder = ReversedDecoder(target, (3, 32, 32))
    forward = [
        (m.in_channels, m.out_channels) for m in target.modules() if isinstance(m, nn.Conv2d)
    ]
    back = [
        (m.out_channels, m.in_channels)
        for m in decoder.modules()
        if isinstance(m, nn.ConvTranspose2d)
    ]
    assert back == forward[::-1]
    linear = [(m.in_features, m.out_features) for m in target.modules() if isinstance(m, nn.Linear)]
    reverse = [
        (m.out_features, m.in_features) for m in decoder.modules() if isinstance(m, nn.Linear)
    ]
    assert reverse == linear[:2][::-1]
    assert sum(isinstance(m, Unpool) for m in decoder.modules()) == 3


@pytest.mark.parametrize(
    "target",
    [
        nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)),
        nn.Linear(6, 4),
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 4)),
    ],
)
def test_targets_of_vectors_are_reversed_too(target):
    decoder = ReversedDecoder(target, (6,))
    assert decoder(torch.randn(3, decoder.code_dim)).shape == (3, 6)


def test_vision_transformers_get_a_decoder_from_their_feature_maps():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    decoder = ReversedDecoder(vit, (3, 32, 32))
    assert not decoder.mirrored
    assert decoder(torch.randn(2, 192)).shape == (2, 3, 32, 32)


def test_a_target_with_dynamic_control_flow_is_reversed_from_its_maps():
    def dynamic(m, x):
        if x.mean() > 100:
            x = x - 100
        return m.head(m.conv(x).mean((2, 3)))

    target = Of(dynamic, conv=nn.Conv2d(1, 4, 3, stride=2), head=nn.Linear(4, 2))
    decoder = ReversedDecoder(target, (1, 12, 12))
    assert not decoder.mirrored and decoder(torch.randn(2, 4)).shape == (2, 1, 12, 12)


def test_a_target_with_functional_layers_is_reversed_from_its_maps():
    def functional(m, x):
        x = torch.max_pool2d(torch.relu(m.conv(x)), 2).flatten(1)
        return m.head(torch.relu(m.hidden(x)))

    layers = {"conv": nn.Conv2d(1, 4, 3), "hidden": nn.LazyLinear(7), "head": nn.Linear(7, 3)}
    target = Of(functional, **layers)
    target(torch.zeros(1, 1, 12, 12))
    decoder = ReversedDecoder(target, (1, 12, 12))
    assert not decoder.mirrored and decoder(torch.randn(2, 7)).shape == (2, 1, 12, 12)


def test_maps_with_channels_last_do_not_shape_the_decoder():
    """A convolution, then a layer on maps whose rows are as long as an image is high."""
    target = Of(
        lambda m, x: m.head(m.act(m.mlp(m.conv(x).permute(0, 2, 3, 1))).mean((1, 2))),
        conv=nn.Conv2d(1, 6, 2, 2), mlp=nn.Linear(6, 40), act=nn.ReLU(), head=nn.Linear(40, 3),
    )  # fmt: skip
    decoder = ReversedDecoder(target, (1, 8, 8))
    unflatten = next(layer for layer in decoder.layers if isinstance(layer, nn.Unflatten))
    assert not decoder.mirrored and tuple(unflatten.unflattened_size) == (6, 4, 4)
    assert decoder(torch.rand(2, decoder.code_dim)).shape == (2, 1, 8, 8)
