import pytest
import torch
from networks import Of
from torch import nn
from torch.nn.utils import parametrizations, prune

from avalanche_cetl.allocation.parameters import (
    anchors_of,
    bare,
    check_held,
    grown,
    named_parameters,
    trainable,
    unwrapped,
    widened,
)


def test_a_wrapped_network_is_found_under_its_own_names():
    model = nn.Linear(2, 3)
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert bare(model) is bare(wrapped) is model


def child():
    """A network with a child that is called as wrappers call theirs."""
    return Of(
        lambda m, x: m._orig_mod(m.module(x)), module=nn.Linear(2, 3), _orig_mod=nn.Linear(3, 3)
    )


def compiled(module):
    return torch.compile(module, backend="eager")


def wrapped_in_parts():
    inner = nn.Sequential(nn.Linear(2, 2), nn.DataParallel(compiled(child())), nn.Linear(3, 1))
    return nn.DataParallel(nn.Sequential(compiled(inner), nn.Linear(1, 1)))


def test_names_are_those_without_wrappers_wherever_they_stand():
    plain = nn.Sequential(nn.Sequential(nn.Linear(2, 2), child(), nn.Linear(3, 1)), nn.Linear(1, 1))
    wrapped = wrapped_in_parts()
    found, under = named_parameters(wrapped), list(wrapped.parameters())
    assert list(found) == [name for name, _ in plain.named_parameters()]
    assert all(a is b for a, b in zip(found.values(), under, strict=True))
    assert "0.1.module.weight" in found and "0.1._orig_mod.bias" in trainable(wrapped)


def test_wrappers_are_off_for_a_while_and_on_again():
    wrapped = wrapped_in_parts()
    before = list(wrapped.modules())
    names = list(named_parameters(wrapped))
    with pytest.raises(KeyError), unwrapped(wrapped) as model:
        assert [name for name, _ in model.named_parameters()] == names
        assert not any(bare(module) is not module for module in model.modules())
        raise KeyError
    assert all(a is b for a, b in zip(before, wrapped.modules(), strict=True))


def test_a_part_that_two_places_share_is_unwrapped_in_both():
    shared = compiled(nn.Linear(2, 2))
    model = nn.Sequential(shared, nn.Tanh(), shared)
    with unwrapped(model):
        assert model[0] is model[2] is bare(shared)
        assert list(named_parameters(model)) == ["0.weight", "0.bias"]
    assert model[0] is model[2] is shared


@pytest.mark.parametrize(
    ("rename", "there"),
    [
        (lambda m: prune.random_unstructured(m["0"], "weight", 0.5), "0.weight_orig"),
        (lambda m: parametrizations.spectral_norm(m["0"]), "0.parametrizations.weight.original"),
        (lambda m: parametrizations.weight_norm(m["0"]), "0.parametrizations.weight.original0"),
        (lambda m: torch.nn.utils.weight_norm(m["0"]), "0.weight_g"),
        (lambda m: m.pop("0"), "1.bias"),
    ],
    ids=["prune", "spectral norm", "weight norm", "old weight norm", "deleted"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_parameter_that_has_lost_its_name_is_refused_with_what_is_there(rename, there):
    model = nn.ModuleDict({"0": nn.Linear(2, 3), "1": nn.BatchNorm1d(3)})
    names = named_parameters(model).keys()
    check_held(names, named_parameters(model), "GFIPlugin")
    rename(model)
    with pytest.raises(ValueError, match=rf"holds '0\.(weight|bias)'.*'{there}'.*prune\.remove"):
        check_held(names, named_parameters(model), "GFIPlugin")


def test_a_network_without_parameters_is_refused_too():
    with pytest.raises(ValueError, match="only 'nothing'"):
        check_held({"weight"}, {}, "GFIPlugin")


def test_frozen_parameters_are_not_trainable():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    assert list(trainable(model)) == ["weight"]


def test_anchors_are_copies_in_single_precision_or_better():
    kinds = {
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
        torch.float32: torch.float32,
        torch.float64: torch.float64,
        torch.complex64: torch.complex64,
    }
    params = {str(kind): nn.Parameter(torch.rand(3).to(kind)) for kind in kinds}
    found = anchors_of(params)
    for kind, wanted in kinds.items():
        anchor, parameter = found[str(kind)], params[str(kind)]
        assert anchor.dtype == wanted and torch.equal(anchor, parameter.detach().to(wanted))
        assert not anchor.requires_grad and anchor.data_ptr() != parameter.data_ptr()
    single = params["torch.float32"]
    assert widened(single) is single


def test_a_parameter_that_has_grown_keeps_its_old_part_and_is_zero_elsewhere():
    value = torch.rand(2, 3)
    found = grown(value, torch.ones(4, 3))
    assert torch.equal(found[:2], value) and not found[2:].any()
    assert grown(value, torch.ones(2, 3)) is value


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, 3, 1), (6,)])
def test_a_parameter_that_shrinks_or_has_other_dimensions_is_refused(shape):
    with pytest.raises(ValueError, match="may grow"):
        grown(torch.rand(2, 3), torch.rand(shape))
