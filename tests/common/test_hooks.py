"""A layer's output is kept as the layer gave it, and gradients flow through what is kept."""

import pytest
import torch
from networks import Of
from torch import nn

from avalanche_cetl import ModuleEncoder, as_target
from avalanche_cetl.common.hooks import Kept, watched


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Of(
        lambda m, x: m.head((m.act(m.norm(m.first(x))) + 1).flatten(1)),
        first=nn.Conv2d(1, 3, 3), norm=nn.BatchNorm2d(3),
        act=nn.ReLU(inplace=True),  # writes into the output of the normalisation
        head=nn.Linear(108, 4),
    ).double().eval()  # fmt: skip


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
    def forward(m, x):
        x = x.flatten(1) + 0
        logits = m.head(input=x)
        with torch.no_grad():
            x.zero_()
        return logits

    named = Of(forward, head=nn.Linear(64, 3, dtype=torch.float64))
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
