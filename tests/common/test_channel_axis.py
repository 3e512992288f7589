"""The axis of channels, from the sizes and the kinds of layers that ran."""

import pytest
import torch
from torch import nn

from avalanche_cetl.common.channel_axis import channel_axis, channels_second


class Block(nn.Module):
    """Convolution, then a linear layer on channels; turned back or not."""

    def __init__(self, channels, back, tokens=False):
        super().__init__()
        self.conv, self.back, self.tokens = nn.Conv2d(3, channels, 1), back, tokens
        self.norm, self.mlp = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.conv(x).permute(0, 2, 3, 1)
        shape = x.shape
        x = x.flatten(1, 2) if self.tokens else x
        x = self.act(self.mlp(self.norm(x))).reshape(shape)
        return x.permute(0, 3, 1, 2) if self.back else x


def axis(network, name, *shape):
    with torch.no_grad():
        return channel_axis(
            network, network.get_submodule(name), lambda: network(torch.rand(shape))
        )


@pytest.mark.parametrize("channels", [4, 5, 6, 30])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_blocks_with_a_linear_layer_inside_have_their_channels_found(channels, tokens, back):
    block = nn.Sequential(Block(channels, back, tokens), nn.Identity())
    turned = {(5, False), (6, True)} if tokens else set()  # the same sizes either way round
    wanted = None if (channels, back) in turned else 1 if back else 3
    for name in ("0", "1"):
        assert axis(block, name, 2, 3, 5, 6) == wanted
    assert axis(block, "0.conv", 2, 3, 5, 6) == 1
    assert axis(block, "0.mlp", 2, 3, 5, 6) == (2 if tokens else 3)


def test_as_many_channels_as_rows_and_columns_leave_it_open():
    assert axis(nn.Sequential(Block(5, True, tokens=True)), "0", 2, 3, 5, 5) is None


def test_convolutions_alone_have_channels_second_whatever_the_sizes():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()), nn.MaxPool2d(1)
    )
    for name in ("0", "1", "1.1", "2"):
        assert axis(net, name, 2, 3, 5, 5) == 1


def test_tokens_have_channels_last_unless_they_are_seen_not_to():
    net = nn.Sequential(nn.Conv2d(3, 7, 1), nn.Flatten(2), nn.Conv1d(7, 4, 1), nn.Identity())
    assert [axis(net, name, 2, 3, 4, 4) for name in "123"] == [1, 1, 1]
    linear = nn.Sequential(nn.Flatten(2), nn.Linear(16, 7), nn.LayerNorm(7), nn.GELU())
    assert [axis(linear, name, 2, 3, 4, 4) for name in "123"] == [2, 2, 2]


def test_outputs_without_positions_have_no_such_axis():
    assert axis(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), "1", 2, 3, 4, 4) is None
    vector, tokens = torch.rand(2, 3), torch.rand(2, 5, 3)
    assert channels_second(vector, None) is vector
    assert torch.equal(channels_second(tokens, 2), tokens.transpose(1, 2))
