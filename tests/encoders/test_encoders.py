import functools

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from avalanche_cetl import Encoder, ModuleEncoder


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


def test_frozen_for_good_and_apart_from_the_original():
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


def test_fingerprints_tell_weights_and_layers_apart():
    one = ModuleEncoder(_net(), input_shape=(1, 8, 8))
    assert one.fingerprint() == ModuleEncoder(_net(), input_shape=(1, 8, 8)).fingerprint()
    assert one.fingerprint() != ModuleEncoder(_net(), "2", input_shape=(1, 8, 8)).fingerprint()
    other = _net()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    assert one.fingerprint() != ModuleEncoder(other, input_shape=(1, 8, 8)).fingerprint()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: ModuleEncoder(3, input_shape=(1, 8, 8)), TypeError),
        (lambda: ModuleEncoder(_net(), "nope", input_shape=(1, 8, 8)), ValueError),
        (lambda: ModuleEncoder(nn.ReLU(), input_shape=(1, 8, 8)), ValueError),
    ],
)
def test_bad_arguments(make, error):
    with pytest.raises(error):
        make()


def test_fingerprints_tell_structures_and_transforms_apart():
    def encoder(net=None, transform=None):
        net = _net() if net is None else net
        return ModuleEncoder(net, input_shape=(1, 8, 8), transform=transform).fingerprint()

    soft = _net()
    soft[2] = nn.Softplus()
    half, third = (v2.Compose([v2.Normalize([m], [1.0])]) for m in (0.5, 0.3))
    found = {
        encoder(),
        encoder(soft),
        encoder(transform=lambda x: x + 1),
        encoder(transform=lambda x: x + 2),
        encoder(transform=functools.partial(torch.add, other=1)),
        encoder(transform=functools.partial(torch.add, other=2)),
        encoder(transform=half),
        encoder(transform=third),
        *(encoder(transform=_shift(by)) for by in (1.0, torch.ones(1), torch.zeros(1))),
    }
    assert len(found) == 11
    assert encoder(transform=_shift(1.0)) == encoder(transform=_shift(1.0))
    again = v2.Compose([v2.Normalize([0.5], [1.0])])
    assert encoder(transform=half) == encoder(transform=again)


def _shift(by):
    return lambda x: x + by


def test_a_fingerprint_is_the_same_in_another_process(partners):
    partners.start(
        """
        import torch
        from torch import nn
        from avalanche_cetl import ModuleEncoder
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        encoder = ModuleEncoder(net, "1", input_shape=(1, 2, 2), transform=torch.abs)
        print(encoder.fingerprint())
        """
    )
    (found,) = partners.succeed()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    here = ModuleEncoder(net, "1", input_shape=(1, 2, 2), transform=torch.abs)
    assert here.fingerprint() == found.strip()


def test_a_user_adds_an_encoder_in_a_few_lines():
    class Mean(Encoder):
        def __init__(self):
            super().__init__()
            self.dim = 3
            self.freeze()

        def encode(self, x):
            return x.mean((2, 3))

    encoder = Mean()
    assert encoder(torch.rand(4, 3, 8, 8)).shape == (4, 3)
    with pytest.raises(ValueError, match="no classifier"):
        encoder.logits(torch.rand(4, 3, 8, 8))
