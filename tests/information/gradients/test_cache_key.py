"""What a forward pass depends on beside its weights: a change of it counts at once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from avalanche_cetl import fisher_information

SCALE = None


class Masked(nn.Linear):
    """A layer whose plain attribute, buffer, closure or global may change what it computes."""

    mask = None

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("ones", torch.ones(sizes[1], sizes[0]))
        self.settings = {"masks": []}

    def forward(self, x):
        weight = self.weight * self.ones
        for mask in [*self.settings["masks"], *([] if self.mask is None else [self.mask])]:
            weight = weight * mask
        if SCALE is not None:
            weight = weight * SCALE
        return F.linear(x, weight, self.bias)


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(Masked(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, torch.randn(7, 6, dtype=torch.float64)


def _half(like):
    return (torch.arange(like.numel()).reshape(like.shape) % 2).to(like)


def mask_as_an_attribute(model):
    model[0].mask = _half(model[0].weight)
    return lambda: setattr(model[0], "mask", None)


def mask_in_a_dictionary(model):
    model[0].settings["masks"].append(_half(model[0].weight))
    return model[0].settings["masks"].clear


def mask_written_into_a_buffer(model):
    model[0].ones.copy_(_half(model[0].weight))
    return lambda: model[0].ones.fill_(1.0)


def hook(model):
    return model[0].register_forward_hook(lambda m, args, out: out * 2).remove


def hook_before(model):
    return model[0].register_forward_pre_hook(lambda m, args: (args[0] * 2,)).remove


def hook_of_a_parameter(model):
    return model[0].weight.register_hook(lambda g: g * 0).remove


def hook_in_the_place_of_another(model):
    layer = model[2]
    handle = layer.register_forward_hook(lambda m, args, out: None)
    handle.remove()
    return layer.register_forward_hook(lambda m, args, out: out + out @ m.weight[:, :3]).remove


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrization(model):
    parametrize.register_parametrization(model[2], "weight", Double())
    return lambda: parametrize.remove_parametrizations(model[2], "weight", False)


def pruning(model):
    prune.custom_from_mask(model[2], "weight", _half(model[2].weight))
    return lambda: prune.remove(model[2], "weight")


def forward_of_the_object(model):
    layer = model[2]
    layer.forward = lambda x: F.linear(x, layer.weight.tanh(), layer.bias)
    return lambda: delattr(layer, "forward")


def global_setting(model):
    _set_scale(_half(model[0].weight))
    return lambda: _set_scale(None)


def _set_scale(value):
    global SCALE
    SCALE = value


@pytest.fixture(autouse=True)
def no_global_setting():
    yield
    _set_scale(None)


CHANGES = [
    mask_as_an_attribute,
    mask_in_a_dictionary,
    mask_written_into_a_buffer,
    hook,
    hook_before,
    parametrization,
    pruning,
    forward_of_the_object,
    global_setting,
    hook_of_a_parameter,
    hook_in_the_place_of_another,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("off", [False, True])
def test_a_change_between_two_measurements_counts_at_once(change, off, assert_exact):
    model, x = _network()
    take_off = change(model) if off else None
    assert_exact(model, x)
    if take_off is None:
        change(model)
    else:
        take_off()
    assert_exact(model, x)


def test_a_change_that_is_read_from_afar_is_found_at_the_tenth_use_at_the_latest(assert_exact):
    class Afar:
        mask = None

    class Reading(nn.Linear):
        def forward(self, x):
            afar = Afar.__dict__["mask"]
            return F.linear(x, self.weight if afar is None else self.weight * afar, self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(Reading(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    assert_exact(model, x)
    Afar.mask = _half(model[0].weight)
    for _ in range(9):
        fisher_information(model, x, lambda out: out.logsumexp(1))
    assert_exact(model, x)


class _Settings:
    twice = False


class _Configured(nn.Linear):
    scale = 1.0

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.settings, self.named = _Settings(), {"a"}

    def forward(self, x):
        weight = self.weight * self.scale
        if self.settings.twice or "b" in self.named:
            weight = weight * weight
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize("what", ["object", "set", "class"])
def test_settings_kept_elsewhere_are_seen(what, monkeypatch, assert_exact):
    torch.manual_seed(0)
    model = nn.Sequential(_Configured(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(7, 6).double()
    assert_exact(model, x)
    if what == "object":
        model[0].settings.twice = True
    elif what == "set":
        model[0].named.add("b")
    else:
        monkeypatch.setattr(_Configured, "scale", 3.0)
    assert_exact(model, x)


def test_a_branch_that_a_weight_decides_is_seen_after_a_step(assert_exact):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.g = nn.Linear(6, 6), nn.Parameter(torch.tensor(-1.0))

        def forward(self, x):
            h = torch.tanh(self.a(x)) * self.g
            return F.linear(h, self.a.weight) if self.g > 0 else h

    torch.manual_seed(0)
    model, x = Gated().double(), torch.randn(7, 6).double()
    assert_exact(model, x)
    with torch.no_grad():
        model.g.fill_(1.0)
    assert_exact(model, x)
