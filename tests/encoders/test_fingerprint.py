"""What an encoder's fingerprint depends on, and what it does not."""

import argparse
import copy
import dataclasses
import functools
import pickle
import types

import pytest
import timm
import torch
import torchvision
from networks import normalised_convolution as network
from torch import nn
from torchvision.transforms import v2

from avalanche_cetl import ModuleEncoder
from avalanche_cetl.common.hooks import Kept, watched
from avalanche_cetl.encoders.fingerprint import Fingerprint, of_version_0_2
from avalanche_cetl.encoders.settings import settings


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


class Affine:
    def __init__(self, by):
        self.by = by

    def scale(self, x):
        return x * self.by

    def shift(self, x):
        return x + self.by


class Scale(nn.Module):
    """A transform with a plain attribute, a buffer that is not in its state, and a counter."""

    def __init__(self, by=1.0, more=1.0, function=torch.abs):
        super().__init__()
        self.by, self.function, self.calls = by, function, 0
        self.register_buffer("more", torch.full((1,), more), persistent=False)

    def forward(self, x):
        self.calls += 1
        by = getattr(self.by, "by", self.by)
        return self.function(x) * (by if isinstance(by, float | int) else 1) * self.more

    def own(self, x):
        return x


class Twice(Scale):
    def forward(self, x):
        return 2 * super().forward(x)


def _called(body):
    return type("Called", (Affine,), {"__call__": body})


def _named(source, **scope):
    """A function ``f`` with the globals that are given."""
    exec(source, scope)
    return scope["f"]


@dataclasses.dataclass
class Config:
    by: float = 1.0
    kind: type = nn.Linear  # no setting; the others are

    def __post_init__(self):
        self.by = float(self.by)


@dataclasses.dataclass(slots=True)
class Slots:
    by: float = 1.0


class Named:
    factor = 1.0

    def __init__(self, by, meter=None):
        self.by, self.meter, self.device = by, meter, torch.device("cpu")


class Larger(Named):
    factor = 2.0


class Silent(nn.Sequential):
    def __repr__(self):
        return "Silent"


def _seeded(make, *args, **options):
    torch.manual_seed(0)
    return make(*args, **options).eval()


def _tokens(make, *args, **options):
    """A layer of a library that reads tokens of four numbers, after what makes one of an image."""
    return nn.Sequential(nn.Flatten(2), _seeded(make, *args, **options))


def _hooked(hook, before=False):
    net = Scale()
    (net.register_forward_pre_hook if before else net.register_forward_hook)(hook)
    return net


def _power(by):
    return lambda module, inputs, output: output**by


def _input_power(module, inputs, by=2):
    return inputs[0] ** by


def _input_cube(module, inputs, by=3):
    return inputs[0] ** by


class Steer(Affine):
    def __call__(self, module, inputs, output):
        return output + self.by

    def hook(self, module, inputs, output):
        return output * self.by


CONFIGURATIONS = (
    Config,
    Slots,
    Named,
    lambda by: argparse.Namespace(by=by, rows=range(2)),
    lambda by: types.SimpleNamespace(by=Named(by)),
    lambda by: [Config(by)],
    lambda by: {"inner": Named(by)},
)
ENCODER_LAYER = functools.partial(_tokens, nn.TransformerEncoderLayer, 4, dim_feedforward=4)
READS = "def f(x): return x * G"
CALLS = "def g(x): return x * G\ndef f(x): return g(x) if len(x) else f(x)"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Affine(2).scale, Affine(3).scale),
        (Affine(2).scale, Affine(2).shift),
        (_called(Affine.scale)(2), _called(Affine.shift)(2)),
        (torch.tensor(1).add, torch.tensor(2).add),
        (Scale(2), Scale(3)),
        (Scale(more=2), Scale(more=3)),
        (Scale(function=torch.abs), Scale(function=torch.exp)),
        (Scale(), Twice()),
        (Scale(2).own, Scale(3).own),
        (nn.Sequential(Scale(2)), nn.Sequential(Scale(3))),
        (v2.Lambda(lambda x: x * 2), v2.Lambda(lambda x: x * 3)),
        *(
            (v2.Compose([v2.Lambda(one)]), v2.Compose([v2.Lambda(other)]))
            for one, other in [(Affine(2).scale, Affine(3).scale)]
        ),
        (_named("def f(x, *, k=2): return x * k"), _named("def f(x, *, k=3): return x * k")),
        (_named(READS, G=2), _named(READS, G=3)),
        (_named(READS, G=torch.ones(1)), _named(READS, G=torch.zeros(1))),
        (_named(CALLS, G=2), _named(CALLS, G=3)),
        (_named("def f(x): return G(x)", G=Scale(2)), _named("def f(x): return G(x)", G=Scale(3))),
        (_named("def f(x): return x * G.by", G=Config(2)),
         _named("def f(x): return x * G.by", G=Config(3))),
        # Settings of libraries' modules that their representation leaves out.
        (ENCODER_LAYER(nhead=1), ENCODER_LAYER(nhead=2)),
        (ENCODER_LAYER(nhead=1), ENCODER_LAYER(nhead=1, norm_first=True)),
        (ENCODER_LAYER(nhead=1), ENCODER_LAYER(nhead=1, batch_first=True)),
        (_tokens(timm.layers.Attention, 4, num_heads=1),
         _tokens(timm.layers.Attention, 4, num_heads=2)),
        (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        (nn.Upsample(2, mode="bilinear"), nn.Upsample(2, mode="bilinear", align_corners=True)),
        (Silent(nn.Softplus(1)), Silent(nn.Softplus(2))),
        # Hooks.
        (Scale(), _hooked(_power(2))),
        (_hooked(_power(2)), _hooked(_power(3))),
        (_hooked(functools.partial(_input_power, by=2), True),
         _hooked(functools.partial(_input_power, by=3), True)),
        (_hooked(_input_power, True), _hooked(_input_cube, True)),
        (_hooked(Steer(2)), _hooked(Steer(3))),
        (_hooked(Steer(2).hook), _hooked(Steer(3).hook)),
        (_hooked(Steer(2)), _hooked(Steer(2).hook)),
        # Configurations.
        *((Scale(make(2)), Scale(make(3))) for make in CONFIGURATIONS),
        (Scale(Named(2)), Scale(Larger(2))),
    ],
)  # fmt: skip
def test_fingerprints_differ_by_what_a_function_or_a_module_computes(one, other):
    def prints(part):
        yield Fingerprint().value(part).hexdigest()
        if isinstance(part, nn.Module):
            net = nn.Sequential(part, nn.Flatten(), nn.Linear(4, 2))
            torch.manual_seed(0)
            net[2].reset_parameters()
            yield ModuleEncoder(net, input_shape=(1, 2, 2)).fingerprint()

    for first, second in zip(prints(one), prints(other), strict=True):
        assert first != second
    assert list(prints(one)) == list(prints(copy.deepcopy(one)))


def test_what_a_pass_keeps_is_not_in_the_fingerprint():
    kept = Scale()
    before = Fingerprint().value(kept).hexdigest()
    kept(torch.zeros(1))
    assert kept.calls == 1 and Fingerprint().value(kept).hexdigest() == before
    counts = _named("def f(x):\n    global N\n    N += 1\n    return x", N=0)
    before = Fingerprint().value(counts).hexdigest()
    counts(0)
    assert Fingerprint().value(counts).hexdigest() == before


def _same(net, work):
    """Check that a network's fingerprint stays while something is done with it."""
    before = Fingerprint().value(net).hexdigest()
    work()
    for again in (net, copy.deepcopy(net), net.train(), net.eval()):
        assert Fingerprint().value(again).hexdigest() == before


class Meter:
    """What a pass writes into, in all the ways that there are."""

    def __init__(self):
        self.count, self.seen, self.outputs = 0, {}, []

    def hook(self, module, inputs, output, also=[]):  # noqa: B006
        self.count += 1
        self.seen[module] = output
        self.outputs.append(output)
        also.append(output)


class Metered(nn.Module):
    def __init__(self):
        super().__init__()
        self.stats, self.meter = types.SimpleNamespace(n=0), Named(1, Counter())
        self.itself = types.SimpleNamespace()
        self.itself.again = self.itself

    def forward(self, x):
        self.stats.n += 1
        self.meter.meter.add()
        return x


class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1


OUTPUTS = []


def _collects():
    outputs, count = [], 0
    append = outputs.append

    def hook(module, inputs, output):
        nonlocal count
        count += 1
        outputs.append(output)
        OUTPUTS.append(output)
        append(output)

    return hook


@pytest.mark.parametrize(
    "net",
    [_hooked(Meter().hook), _hooked(_collects()), Metered()],
    ids=["method", "closure", "attributes"],
)
def test_what_a_hook_or_an_object_keeps_of_a_pass_is_not_in_the_fingerprint(net):
    _same(net, lambda: net(torch.zeros(1)))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "eva02_tiny_patch14_224"])
def test_a_librarys_network_keeps_its_fingerprint(name):
    sizes = {"img_size": 28, "depth": 1} if "vit" in name or "eva" in name else {}
    net = timm.create_model(name, patch_size=14, **sizes) if sizes else timm.create_model(name)
    before = Fingerprint().value(net.eval()).hexdigest()
    with torch.no_grad():
        _same(net, lambda: net(torch.zeros(1, 3, 28, 28)))
    assert Fingerprint().value(pickle.loads(pickle.dumps(net))).hexdigest() == before


def test_choices_of_whole_networks_of_libraries_are_in_the_fingerprint():
    def vit(pool):
        return _seeded(timm.create_model, "test_vit", global_pool=pool, num_classes=0)

    def googlenet(transforms):
        return _seeded(
            torchvision.models.GoogLeNet, 2, False, transforms, init_weights=False
        )  # fmt: skip

    for make, choices in ((vit, ("avg", "max")), (googlenet, (True, False))):
        one, other = (Fingerprint().value(make(choice)).hexdigest() for choice in choices)
        assert one != other


def test_hooks_of_this_package_are_not_in_the_fingerprint():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    before = Fingerprint().value(net).hexdigest()
    with Kept(net[1], "it"), Kept(net[1], "it", reads=True), watched([net[0]], print):
        assert Fingerprint().value(net).hexdigest() == before


class Logs(ModuleEncoder):
    def __init__(self, log, by=1.0):
        net = nn.Sequential(Scale(by), nn.Flatten(), nn.Linear(64, 2))
        nn.init.ones_(net[2].weight)
        nn.init.ones_(net[2].bias)
        super().__init__(net, input_shape=(1, 8, 8))
        self.log = log


def test_an_encoder_of_ones_own_says_itself_which_attributes_count():
    encoder = Logs("one")
    before = encoder.fingerprint()
    encoder.cheapest_logits(torch.rand(2, 1, 8, 8))
    assert encoder.fingerprint() == before == Logs("other").fingerprint()
    assert before != Logs("one", by=2.0).fingerprint()


def test_methods_of_the_module_itself_end():
    net = Scale()
    net.function = net.own
    assert Fingerprint().value(net).hexdigest() != Fingerprint().value(Scale()).hexdigest()


def test_features_of_plain_networks_stay_those_of_earlier_versions():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    encoder = ModuleEncoder(net, "1", input_shape=(1, 2, 2), transform=torch.abs)
    assert (
        encoder.fingerprint() == "f9b7be70c1aef5de2f862c290514526a2c9428822f2dd3d1dd3cfd6eb9c86411"
    )


def test_layers_that_say_all_their_settings_add_nothing_to_a_fingerprint():
    net = nn.Sequential(
        nn.Conv2d(1, 1, 2, padding=1), nn.BatchNorm2d(1), nn.ReLU(), nn.MaxPool2d(3), nn.Dropout(),
        nn.Flatten(), nn.LayerNorm(1), nn.Linear(1, 2),
    )  # fmt: skip
    assert not [name for name, _ in settings(net, set())]
    assert [name for name, _ in settings(nn.Sequential(nn.AvgPool2d(2)), set())]


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return self.scale * x.flatten(1)


class Times:
    def __init__(self, by):
        self.by = by

    def add(self, x):
        return x.float() * self.by


def test_fingerprints_of_version_0_2_can_be_compared():
    def scaled(scale, by):
        return ModuleEncoder(
            Scaled(scale), layer="", input_shape=(1, 2, 2), transform=Times(by).add
        )

    with of_version_0_2():
        found = scaled(2.0, 1.0).fingerprint(), scaled(3.0, 4.0).fingerprint()
    assert found[0] == "9cc3c7d1255b1e0d5c5e2d9d6a8686ce40810793751ce86fc3f63bf7afb1b5b2"
    assert found[1] == found[0]  # it did not see the attributes
    assert scaled(2.0, 1.0).fingerprint() not in (found[0], scaled(3.0, 1.0).fingerprint())
