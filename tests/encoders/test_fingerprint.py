"""What an encoder's fingerprint depends on, and what it does not."""

import functools

import torch
from networks import normalised_convolution as network
from torch import nn
from torchvision.transforms import v2

from avalanche_cetl import ModuleEncoder


def test_fingerprints_differ_by_weights_and_layers():
    one = ModuleEncoder(network(), input_shape=(1, 8, 8))
    assert one.fingerprint() == ModuleEncoder(network(), input_shape=(1, 8, 8)).fingerprint()
    assert one.fingerprint() != ModuleEncoder(network(), "2", input_shape=(1, 8, 8)).fingerprint()
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-3
    assert one.fingerprint() != ModuleEncoder(other, input_shape=(1, 8, 8)).fingerprint()


def test_fingerprints_differ_by_structures_and_transforms():
    def encoder(net=None, transform=None):
        net = network() if net is None else net
        return ModuleEncoder(net, input_shape=(1, 8, 8), transform=transform).fingerprint()

    soft = network()
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


def test_features_of_plain_networks_stay_those_of_earlier_versions():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    encoder = ModuleEncoder(net, "1", input_shape=(1, 2, 2), transform=torch.abs)
    assert (
        encoder.fingerprint() == "f9b7be70c1aef5de2f862c290514526a2c9428822f2dd3d1dd3cfd6eb9c86411"
    )
