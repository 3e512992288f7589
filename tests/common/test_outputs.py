"""A layer's output is kept as the layer gave it, and gradients flow through what is kept."""

import copy

import pytest
import torch
from torch import nn

from avalanche_cetl import CICNN, ModuleEncoder, as_target
from avalanche_cetl.common.outputs import Kept, watched


class InPlace(nn.Module):
    """The layer after its normalisation writes into that one's output."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 3, 3, dtype=torch.float64), nn.BatchNorm2d(3).double()
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(108, 4, dtype=torch.float64)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        return self.head((x + 1).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return InPlace().eval()


@pytest.fixture
def x():
    return torch.rand(5, 1, 8, 8, dtype=torch.float64)


def test_the_values_are_those_before_the_next_layer_wrote(net, x):
    with Kept(net.norm, "norm") as kept:
        found = net(x)
        net(2 * x)
    torch.testing.assert_close(kept.values[0], net.norm(net.first(x)))
    torch.testing.assert_close(kept.values[1], net.norm(net.first(2 * x)))
    assert torch.equal(found, net(x)) and not net.norm._forward_hooks
    net(x)
    assert len(kept.values) == 2


def test_gradients_of_what_is_kept_and_of_the_output_are_those_of_plain_autograd(net, x):
    with Kept(net.norm, "norm") as kept:
        logits = net(x)
    (kept.values[0].square().sum() + logits.pow(3).sum()).backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    code = net.norm(net.first(x))
    logits = net.head((code.relu() + 1).flatten(1))
    (code.square().sum() + logits.pow(3).sum()).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_an_input_is_kept_whether_it_is_given_by_place_or_by_name(net, x):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 3, dtype=torch.float64)

        def forward(self, x):
            x = x.flatten(1) + 0
            logits = self.head(input=x)
            with torch.no_grad():
                x.zero_()
            return logits

    named = Named()
    with Kept(named.head, "head", reads=True) as kept, torch.no_grad():
        named(x)
    assert torch.equal(kept.values[0], x.flatten(1))


def test_a_layer_that_did_not_run_is_an_error_with_the_given_message(net, x):
    unused = nn.Linear(2, 2)
    with Kept(unused, "unused") as kept, Kept(net.norm, "norm") as used:
        net(x)
    with pytest.raises(ValueError, match="name another"):
        kept.latest("name another")
    assert used.latest("name another") is used.values[0]


def test_watched_layers_are_seen_as_they_run_until_the_block_ends(net, x):
    seen = []
    with pytest.raises(KeyError), watched([net.norm, net.first], lambda *run: seen.append(run)):
        net(x)
        raise KeyError
    net(x)
    assert [layer for layer, _ in seen] == [net.first, net.norm]
    assert not net.first._forward_hooks and not net.norm._forward_hooks


def test_outputs_that_are_no_tensors_are_refused_with_the_layers_name():
    lstm = nn.LSTM(3, 2)
    with Kept(lstm, "layer='rnn'"), pytest.raises(ValueError, match=r"layer='rnn' gives a tuple"):
        lstm(torch.rand(2, 3))


@pytest.mark.parametrize("code", ["norm", "first", "act", None])
def test_a_targets_code_is_what_its_layer_gave_and_trains_it(net, x, code):
    wanted = {
        "first": lambda: net.first(x),
        "norm": lambda: net.norm(net.first(x)),
        "act": lambda: net.norm(net.first(x)).relu(),
        None: lambda: net.norm(net.first(x)).relu() + 1,
    }[code]().flatten(1)
    plain = net(x.clone())
    found, logits = as_target(net, code).encode(x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(logits, plain)
    weight = net.first.weight
    (got,) = torch.autograd.grad(found.square().sum() + logits.sum(), weight)
    (expected,) = torch.autograd.grad(wanted.square().sum() + plain.sum(), weight)
    torch.testing.assert_close(got, expected)


def test_a_module_encoder_reads_its_layer_before_the_next_one_writes(net, x):
    for layer, wanted in (("norm", net.norm(net.first(x))), ("first", net.first(x))):
        encoder = ModuleEncoder(net, layer, input_shape=(1, 8, 8))
        torch.testing.assert_close(encoder(x), wanted.flatten(1).float())


class Writing(nn.Module):
    """Its forward pass writes into its input, in a way that depends on the input's layout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, x):
        self.seen = x.stride()
        return self.layer(x.sub_(0.5).div_(0.25).flatten(1))


@pytest.mark.parametrize("wrapped", ["encoder", "transform", "target", "coded target"])
def test_the_callers_images_stay_as_they_were(wrapped):
    torch.manual_seed(0)
    module = Writing()
    plain = copy.deepcopy(module)
    x = torch.rand(4, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    given = x.clone()
    wanted = plain(x.clone())
    if wrapped == "encoder":
        found = ModuleEncoder(module, input_shape=(1, 8, 8)).logits(x)
    elif wrapped == "transform":
        twice = ModuleEncoder(module, input_shape=(1, 8, 8), transform=lambda x: x.mul_(0.5))
        found, wanted = twice.logits(x), plain(0.5 * given)
    elif wrapped == "target":
        found = as_target(module)(x)
    else:
        found = as_target(module).encode(x)[1]
    assert torch.equal(x, given)
    torch.testing.assert_close(found, wanted)
    assert plain.seen == given.stride()


def test_gradients_reach_the_images_of_a_target_that_writes_into_them():
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    module = Writing()
    as_target(module)(x).sum().backward()
    wanted = torch.autograd.grad(module.layer(((x - 0.5) / 0.25).flatten(1)).sum(), x)[0]
    torch.testing.assert_close(x.grad, wanted)


def test_a_cicnn_gives_the_same_values_to_the_bit():
    torch.manual_seed(0)
    net, x = CICNN(3, (1, 8, 8), width=0.1), torch.rand(4, 1, 8, 8)
    code, logits = as_target(net).encode(x)
    assert torch.equal(logits, net(x)) and torch.equal(code, net.forward_features(x))
