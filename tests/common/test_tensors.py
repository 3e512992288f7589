"""Inputs of networks that may write into them stay as they were."""

import copy

import pytest
import torch
from torch import nn

from avalanche_cetl import ModuleEncoder, as_target
from avalanche_cetl.common.tensors import map_tensors, own_copy


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


def test_own_copies_keep_structure_and_layout():
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    copied = own_copy((x, [x, "name"], None))
    assert isinstance(copied, tuple) and copied[1][1] == "name" and copied[2] is None
    assert torch.equal(copied[0], x) and copied[0].data_ptr() != x.data_ptr()
    assert copied[0].is_contiguous(memory_format=torch.channels_last)
    pair = nn.utils.rnn.PackedSequence(torch.rand(3, 2), torch.tensor([2, 1]))
    assert isinstance(own_copy(pair), nn.utils.rnn.PackedSequence)


def test_tensors_of_nested_tuples_are_mapped_and_nothing_stays_nothing():
    x = torch.ones(2)
    found = map_tensors((x, [x, None]), lambda t: 2 * t)
    assert found[1][1] is None and torch.equal(found[0], 2 * x) and torch.equal(found[1][0], 2 * x)
    with pytest.raises(TypeError, match="got str"):
        map_tensors((x, "name"), lambda t: t)
