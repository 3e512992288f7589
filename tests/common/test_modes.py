import pytest
import torch
from torch import nn

from avalanche_cetl.common.modes import (
    evaluation_mode,
    gradients_allowed,
    lone_sample,
    outside_of_inference,
)


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()


def test_evaluation_mode_restores_every_mode_and_every_buffer():
    model = network()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        model[0].train()
        model[1].running_mean.add_(1)
        raise KeyError
    assert [module.training for module in model] == [True, True, False]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_gradients_are_allowed_inside_of_inference_mode():
    model = network()
    with torch.inference_mode(), gradients_allowed(model), torch.enable_grad():
        model(torch.rand(5, 3)).sum().backward()
    assert model[0].weight.grad is not None


def test_tensors_of_inference_mode_are_copied_and_others_are_not():
    plain = torch.ones(2)
    with torch.inference_mode():
        inner = torch.ones(2)
    found = outside_of_inference((plain, inner))
    assert found[0] is plain and torch.equal(found[1], inner) and not found[1].is_inference()


@pytest.mark.parametrize("rows", [1, 2])
def test_batchnorm_reads_running_statistics_of_a_lone_row_alone(rows):
    model = network()
    with lone_sample(rows, model):
        assert model[1].training == (rows != 1) and model[2].training
        assert model(torch.rand(rows, 3)).isfinite().all()
    assert model[1].training
