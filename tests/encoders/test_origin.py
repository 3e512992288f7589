"""Networks of one fingerprint that compute different things are told apart by what they answer."""

import copy
import functools
import json
import types

import pytest
import timm
import torch
import torchvision
from networks import normalised_convolution
from torch import nn
from torchvision.transforms import v2

from avalanche_cetl import Encoder, ModuleEncoder, PrecomputedEncoder
from avalanche_cetl.encoders.origin import Origin

SHAPE = (1, 4, 4)


class Scale(nn.Module):
    """Multiplies by what it is given, in some way that no representation shows."""

    def __init__(self, by=1.0):
        super().__init__()
        self.by, self.calls = by, 0
        self.register_buffer("more", torch.full((1,), float(by)), persistent=False)

    def forward(self, x):
        self.calls += 1
        return x * self.more

    def scale(self, x):
        return x * self.by


class Configured(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = types.SimpleNamespace(scale=by)

    def forward(self, x):
        return x * self.by.scale


def encoder(part=None, transform=None):
    part = nn.Identity() if part is None else part
    net = nn.Sequential(part, nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 2))
    for layer, seed in zip(net[2:], (1, 2), strict=True):
        torch.manual_seed(seed)
        layer.reset_parameters()
    return ModuleEncoder(net, input_shape=SHAPE, transform=transform)


def seeded(make, *args, **options):
    """A network with larger weights than it begins with, so that all its parts tell."""
    torch.manual_seed(0)
    made = make(*args, **options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 4
    return made


def tokens(make, *args, **options):
    """A layer that reads four tokens of four numbers, after what makes them of an image."""
    return nn.Sequential(nn.Flatten(1, 2), seeded(make, *args, **options))


def hooked(hook, before=False):
    net = Scale()
    (net.register_forward_pre_hook if before else net.register_forward_hook)(hook)
    return net


def reading(number):
    """A function that reads a global number."""
    scope = {"G": number}
    exec("def f(x): return x * G", scope)
    return scope["f"]


LAYER = functools.partial(
    tokens, nn.TransformerEncoderLayer, 4, dim_feedforward=4, batch_first=True
)
ATTENTION = functools.partial(tokens, timm.layers.Attention, 4)
PAIRS = {
    "buffer": [Scale(2), Scale(3)],
    "configuration": [Configured(by) for by in (2, 3)],
    "heads": [LAYER(nhead=heads) for heads in (1, 2)],
    "norm": [LAYER(nhead=1, norm_first=first) for first in (False, True)],
    "attention": [ATTENTION(num_heads=heads) for heads in (1, 2)],
    "padding": [nn.AvgPool2d(3, 1, 1, count_include_pad=count) for count in (False, True)],
    "hook": [hooked(lambda module, inputs, output, by=by: output**by) for by in (1, 2)],
    "hook before": [hooked(lambda module, inputs, by=by: inputs[0] ** by, True) for by in (1, 2)],
}


@pytest.mark.parametrize("name", PAIRS)
def test_networks_are_told_apart_by_what_they_answer(name):
    one, other = map(encoder, PAIRS[name])
    origin = Origin.of(one, SHAPE, torch.float32)
    assert origin.is_of(one) and origin.is_of(copy.deepcopy(one)) and not origin.is_of(other)
    assert other.fingerprint() == one.fingerprint()  # which alone does not tell


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Scale(2).scale, Scale(3).scale),
        (reading(2), reading(3)),
        (torch.tensor(2).mul, torch.tensor(3).mul),
        (v2.Lambda(Scale(2).scale), v2.Lambda(Scale(3).scale)),
    ],
)
def test_transforms_are_told_apart_too(one, other):
    first, second = (encoder(transform=transform) for transform in (one, other))
    origin = Origin.of(first, SHAPE, torch.float32)
    assert origin.is_of(encoder(transform=one)) and not origin.is_of(second)


@pytest.mark.parametrize(
    ("make", "choices", "shape"),
    [
        (lambda pool: timm.create_model("test_vit", global_pool=pool, num_classes=0),
         ("avg", "max"), (3, 160, 160)),
        (lambda transforms: torchvision.models.GoogLeNet(2, False, transforms, init_weights=False),
         (True, False), (3, 32, 32)),
    ],
)  # fmt: skip
def test_choices_of_whole_networks_of_libraries_are_told_apart(make, choices, shape):
    one, other = (ModuleEncoder(seeded(make, choice), "", input_shape=shape) for choice in choices)
    origin = Origin.of(one, shape, torch.float32)
    assert origin.is_of(one) and not origin.is_of(other)


def test_weights_are_told_apart_where_the_answers_are_alike():
    one, other = encoder(), encoder()
    with torch.no_grad():
        other.module[2].weight[0, 0] += 1e-4
    assert not Origin.of(one, SHAPE, torch.float32).is_of(other)


def test_what_a_pass_keeps_changes_nothing():
    one = encoder(Scale(2))
    origin = Origin.of(one, SHAPE, torch.float32)
    one(torch.rand(3, *SHAPE))
    assert one.module[0].calls and origin.is_of(one) and origin.is_of(encoder(Scale(2)))


def test_it_is_known_again_from_plain_data_in_another_type_and_by_the_fingerprint_of_0_2():
    one, other = encoder(Scale(2)), encoder(Scale(3))
    state = json.loads(json.dumps(Origin.of(one, SHAPE, torch.float32).state_dict()))
    kept = Origin.from_state(state)
    assert kept.is_of(encoder(Scale(2))) and not kept.is_of(other)
    half = Origin.of(one, SHAPE, torch.float16).answers  # images of another type
    near = Origin(kept.fingerprint, SHAPE, "float32", half)
    assert [list(row) for row in half] != kept.answers and near.is_of(one)
    old = Origin.from_state(one.fingerprint())
    assert old.is_of(one) and old.is_of(other)


class Own(Encoder):
    """Reads what a test says."""

    dim = 3

    def __init__(self, encode):
        super().__init__()
        self._encode, self.asked = encode, 0
        self.answers = nn.Identity()  # a name that a user may take
        self.freeze()

    def encode(self, x):
        self.asked += 1
        return self._encode(x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_networks_that_read_bytes_or_tokens_are_asked_in_their_type(dtype):
    table = torch.rand(256, 3, generator=torch.Generator().manual_seed(0))

    def encode(x):
        assert x.dtype == dtype
        return table[x.flatten(1).int()].mean(1)

    (first, second) = Origin.of(Own(encode), (41,), dtype).answers
    assert len(first) == 8 and first != second


def test_a_network_that_cannot_run_on_noise_is_known_by_its_fingerprint():
    def encode(x):
        raise ValueError("photographs, please")

    one, other = Own(encode), encoder()
    origin = Origin.of(one, SHAPE, torch.float32)
    assert not origin.answers and origin.is_of(one) and not origin.is_of(other)


def test_a_network_that_draws_is_known_again_and_nothing_else_draws_for_it():
    one = Own(lambda x: x.flatten(1)[:, :3] + torch.randn(len(x), 3))
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    origin = Origin.of(one, SHAPE, torch.float32)
    assert torch.equal(torch.rand(1), wanted)
    assert Origin.of(one, SHAPE, torch.float32, again=True).agrees(origin)


def test_an_encoder_is_asked_once():
    one = encoder(Scale(2))
    calls = one.module[0].calls
    origin = Origin.of(one, SHAPE, torch.float32)
    assert origin.is_of(one) and Origin.of(one, SHAPE, torch.float32) == origin
    assert one.module[0].calls == calls + 2  # an image at a time


def test_features_without_a_network_are_known_by_themselves():
    one, other = (PrecomputedEncoder({"train": torch.full((3, 2), by)}) for by in (1.0, 2.0))
    origin = Origin(one.fingerprint())
    assert origin.is_of(one) and not origin.is_of(other)


def test_networks_of_other_sizes_are_no_error():
    net = normalised_convolution()
    one = ModuleEncoder(net, input_shape=(1, 8, 8))
    origin = Origin.of(one, (1, 8, 8), torch.float32)
    assert origin.is_of(one) and not origin.is_of(encoder())
