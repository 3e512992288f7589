"""Unpooling alone, and fused with the convolution that follows."""

import pytest
import torch
from torch import nn

from avalanche_cetl.models.unpool import Unpool, fusible, unpool_and_convolve


def test_nails_stand_in_the_first_pixel_of_each_cell():
    small = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    nearest = Unpool((4, 5), "nearest")(small)[0, 0]
    zeros = Unpool((4, 5), "zeros")(small)[0, 0]
    assert nearest[0].tolist() == [1, 1, 1, 2, 2]
    assert zeros[0].tolist() == [1, 0, 0, 2, 0] and zeros[1].sum() == 0
    assert zeros.sum() == small.sum()


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
def test_unpooling_and_convolution_in_one_equal_the_two_layers(shape, bias):
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
