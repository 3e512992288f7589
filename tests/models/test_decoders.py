import pytest
import timm
import torch
from torch import nn

from avalanche_cetl import CICNN, ReversedDecoder
from avalanche_cetl.models.unpool import Unpool


def _strange(shape):
    """Strides, dilation, groups, 'same' padding, average pooling, odd kernels."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding="same", groups=2),
        nn.GELU(),
        nn.AvgPool2d(3, stride=2),
        nn.Conv2d(6, 4, 2, dilation=2, padding="valid"),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(9),
        nn.ReLU(),
        nn.Linear(9, 3),
    )


def _global(shape):
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


TARGETS = {
    "cicnn": lambda shape: CICNN(3, shape, width=0.1),
    "strange": _strange,
    "global pool": _global,
    "resnet": lambda shape: timm.create_model("resnet10t", in_chans=shape[0], num_classes=3),
}
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 33, 33), (1, 29, 43), (2, 64, 40)]


@pytest.mark.parametrize("unpool", ["nearest", "zeros"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TARGETS)
def test_the_reconstruction_has_exactly_the_inputs_shape(name, shape, unpool):
    target = TARGETS[name](shape)
    with torch.no_grad():
        target(torch.zeros(2, *shape))
    decoder = ReversedDecoder(target, shape, unpool=unpool)
    assert decoder.mirrored == (name != "resnet")
    assert decoder(torch.randn(2, decoder.code_dim)).shape == (2, *shape)


def test_a_decoder_learns_an_image():
    torch.manual_seed(0)
    decoder = ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16))
    image, code = torch.zeros(1, 1, 16, 16), torch.randn(1, decoder.code_dim)
    image[0, 0, 4:10, 6:] = 1
    assert decoder(code).std() < 1
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        loss = (decoder(code) - image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * image.var()


def test_other_unpoolings_and_codes_of_another_width_are_refused():
    with pytest.raises(ValueError, match="nearest"):
        ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16), unpool="magic")
    decoder = ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16))
    with pytest.raises(ValueError, match="codes"):
        decoder(torch.zeros(2, 3))


def test_hooks_on_a_decoder_see_every_layer():
    decoder = ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16)).double()
    code = torch.randn(2, decoder.code_dim, dtype=torch.float64)
    at_once = decoder(code)
    seen = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, _args, _output: seen.append(type(module)))
    torch.testing.assert_close(decoder(code), at_once, rtol=1e-12, atol=1e-12)
    assert seen == [type(layer) for layer in decoder.layers] and Unpool in seen


def test_a_decoder_with_hooks_has_the_same_precision_under_autocast():
    decoder = ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16))
    code = torch.randn(2, decoder.code_dim)
    with torch.autocast("cpu", torch.bfloat16):
        at_once = decoder(code)
        decoder.layers[-2].register_forward_hook(lambda *_: None)
        assert decoder(code).dtype == at_once.dtype == torch.bfloat16
