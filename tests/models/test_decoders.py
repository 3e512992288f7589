import pytest
import timm
import torch
from torch import nn

from avalanche_cetl import CICNN, ReversedDecoder
from avalanche_cetl.models.unpool import Unpool, fusible, unpool_and_convolve


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


def _functional(shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(shape[0], 4, 3)
            self.hidden = nn.LazyLinear(7)
            self.head = nn.Linear(7, 3)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            x = torch.max_pool2d(x, 2).flatten(1)
            return self.head(torch.relu(self.hidden(x)))

    return Net()


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


def test_seven_by_seven():
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
def test_vector_inputs(target):
    decoder = ReversedDecoder(target, (6,))
    assert decoder(torch.randn(3, decoder.code_dim)).shape == (3, 6)


def test_vision_transformers_get_a_decoder_from_their_feature_maps():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    decoder = ReversedDecoder(vit, (3, 32, 32))
    assert not decoder.mirrored
    assert decoder(torch.randn(2, 192)).shape == (2, 3, 32, 32)


def test_a_target_with_dynamic_control_flow_falls_back():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(4, 2)

        def forward(self, x):
            if x.mean() > 100:
                x = x - 100
            return self.head(self.conv(x).mean((2, 3)))

    decoder = ReversedDecoder(Dynamic(), (1, 12, 12))
    assert not decoder.mirrored and decoder(torch.randn(2, 4)).shape == (2, 1, 12, 12)


def test_functional_layers_without_a_reverse_fall_back():
    target = _functional((1, 12, 12))
    target(torch.zeros(1, 1, 12, 12))
    decoder = ReversedDecoder(target, (1, 12, 12))
    assert not decoder.mirrored and decoder(torch.randn(2, 7)).shape == (2, 1, 12, 12)


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


def test_nails_stand_in_the_first_pixel_of_each_cell():
    small = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    nearest = Unpool((4, 5), "nearest")(small)[0, 0]
    zeros = Unpool((4, 5), "zeros")(small)[0, 0]
    assert nearest[0].tolist() == [1, 1, 1, 2, 2]
    assert zeros[0].tolist() == [1, 0, 0, 2, 0] and zeros[1].sum() == 0
    assert zeros.sum() == small.sum()


def test_bad_arguments():
    with pytest.raises(ValueError, match="nearest"):
        ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16), unpool="magic")
    decoder = ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16))
    with pytest.raises(ValueError, match="codes"):
        decoder(torch.zeros(2, 3))


@pytest.mark.parametrize("size", [(6, 8), (3, 8), (12, 4), (7, 9)])
def test_unpooling_is_torchs_nearest_to_the_bit(size):
    x = torch.randn(5, 3, 3, 4, requires_grad=True)
    unpool = Unpool(size)
    wanted = torch.nn.functional.interpolate(x, size, mode="nearest")
    assert torch.equal(unpool(x), wanted)
    g = torch.randn_like(wanted)
    found, plain = (torch.autograd.grad(y, x, g)[0] for y in (unpool(x), wanted))
    assert torch.equal(found, plain)
    each = torch.func.vmap(torch.func.grad(lambda v: (unpool(v[None]) * g[0]).sum()))(x.detach())
    for i in range(5):
        (one,) = torch.autograd.grad((unpool(x[i : i + 1]) * g[0]).sum(), x)
        torch.testing.assert_close(each[i], one[i])
    double = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(unpool, (double,))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 4, 5), (3, 1, 1), (1, 8, 3)])
def test_unpooling_and_convolution_in_one_are_the_same(shape, bias):
    """Value and gradients in float64, against the two layers one after the other."""
    torch.manual_seed(0)
    channels, *small = shape
    unpool = Unpool([2 * side for side in small])
    layer = nn.ConvTranspose2d(channels, 4, 3, padding=1, bias=bias).double()
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    assert fusible(unpool, layer, x)
    inputs = [x, *layer.parameters()]
    found, wanted = unpool_and_convolve(x, layer), layer(unpool(x))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(wanted)
    pairs = (torch.autograd.grad(y, inputs, g) for y in (found, wanted))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_only_a_doubling_before_a_plain_convolution_goes_in_one():
    x = torch.zeros(1, 2, 4, 4)
    plain = nn.ConvTranspose2d(2, 3, 3, padding=1)
    assert fusible(Unpool((8, 8)), plain, x)
    for unpool in (Unpool((8, 8), "zeros"), Unpool((8, 9)), Unpool((4, 4))):
        assert not fusible(unpool, plain, x)
    for options in (
        {"kernel_size": 5, "padding": 2},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2},
        {"output_padding": 1, "stride": 2},
    ):
        layer = nn.ConvTranspose2d(2, 3, **{"kernel_size": 3, "padding": 1, **options})
        assert not fusible(Unpool((8, 8)), layer, x)


def test_hooks_see_every_layer():
    decoder = ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16)).double()
    code = torch.randn(2, decoder.code_dim, dtype=torch.float64)
    at_once = decoder(code)
    seen = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, _args, _output: seen.append(type(module)))
    torch.testing.assert_close(decoder(code), at_once, rtol=1e-12, atol=1e-12)
    assert seen == [type(layer) for layer in decoder.layers] and Unpool in seen


def test_the_same_precision_under_autocast():
    decoder = ReversedDecoder(CICNN(3, (1, 16, 16), width=0.1), (1, 16, 16))
    code = torch.randn(2, decoder.code_dim)
    with torch.autocast("cpu", torch.bfloat16):
        at_once = decoder(code)
        decoder.layers[-2].register_forward_hook(lambda *_: None)
        assert decoder(code).dtype == at_once.dtype == torch.bfloat16


def test_maps_with_channels_last_do_not_shape_the_decoder():
    class Turned(nn.Module):
        """A convolution, then a layer on maps whose rows are as long as an image is high."""

        def __init__(self):
            super().__init__()
            self.conv, self.mlp = nn.Conv2d(1, 6, 2, 2), nn.Linear(6, 40)
            self.act, self.head = nn.ReLU(), nn.Linear(40, 3)

        def forward(self, x):
            x = self.act(self.mlp(self.conv(x).permute(0, 2, 3, 1)))
            return self.head(x.mean((1, 2)))

    decoder = ReversedDecoder(Turned(), (1, 8, 8))
    unflatten = next(layer for layer in decoder.layers if isinstance(layer, nn.Unflatten))
    assert not decoder.mirrored and tuple(unflatten.unflattened_size) == (6, 4, 4)
    assert decoder(torch.rand(2, decoder.code_dim)).shape == (2, 1, 8, 8)
