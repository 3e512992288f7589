import pytest
import torch
from torch import nn

from avalanche_cetl import ModuleEncoder


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def test_module_encoder_reads_pre_logits_and_logits():
    net = _net().eval()
    encoder = ModuleEncoder(net, input_shape=(1, 8, 8))
    x = torch.rand(5, 1, 8, 8)
    assert encoder.dim == 6 and encoder.num_classes == 3
    torch.testing.assert_close(encoder(x), net[:6](x))
    torch.testing.assert_close(encoder.logits(x), net(x))


def test_a_named_layer_is_flattened():
    encoder = ModuleEncoder(_net(), "2", input_shape=(1, 8, 8))
    assert encoder.dim == 36 and encoder(torch.rand(2, 1, 8, 8)).shape == (2, 36)


def test_an_encoder_stays_frozen_and_apart_from_the_original():
    net = _net()
    encoder = ModuleEncoder(net, input_shape=(1, 8, 8))
    outer = nn.Sequential(encoder, nn.Linear(6, 2)).train()
    x = torch.rand(5, 1, 8, 8)
    before = encoder(x)
    outer(x)
    with torch.no_grad():
        net[0].weight.zero_()
    assert outer.training and not any(m.training for m in encoder.modules())
    assert not encoder(x).requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(encoder(x), before)


def test_a_transform_comes_first():
    plain = ModuleEncoder(_net(), input_shape=(1, 8, 8))
    pooled = ModuleEncoder(
        _net(), input_shape=(1, 16, 16), transform=lambda x: nn.functional.avg_pool2d(x, 2)
    )
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(pooled(x), plain(nn.functional.avg_pool2d(x, 2)))
    torch.testing.assert_close(pooled.logits(x), plain.logits(nn.functional.avg_pool2d(x, 2)))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: ModuleEncoder(3, input_shape=(1, 8, 8)), TypeError),
        (lambda: ModuleEncoder(_net(), "nope", input_shape=(1, 8, 8)), ValueError),
        (lambda: ModuleEncoder(nn.ReLU(), input_shape=(1, 8, 8)), ValueError),
    ],
)
def test_modules_and_layers_that_cannot_be_are_refused(make, error):
    with pytest.raises(error):
        make()
