import pytest
import torch
from torch import nn

from avalanche_cetl.allocation.parameters import bare, grown, trainable


def test_a_wrapped_network_is_found_under_its_own_names():
    model = nn.Linear(2, 3)
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert bare(model) is bare(wrapped) is model


def test_frozen_parameters_are_not_trainable():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    assert list(trainable(model)) == ["weight"]


def test_a_parameter_that_has_grown_keeps_its_old_part_and_is_zero_elsewhere():
    value = torch.rand(2, 3)
    found = grown(value, torch.ones(4, 3))
    assert torch.equal(found[:2], value) and not found[2:].any()
    assert grown(value, torch.ones(2, 3)) is value


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, 3, 1), (6,)])
def test_a_parameter_that_shrinks_or_has_other_dimensions_is_refused(shape):
    with pytest.raises(ValueError, match="may grow"):
        grown(torch.rand(2, 3), torch.rand(shape))
