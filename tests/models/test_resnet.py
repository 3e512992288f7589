import pytest
import torch
from torch import nn

from avalanche_cetl import ResNet26, as_target


def test_resnet26_has_26_layers_and_works_as_a_target():
    model = ResNet26(7, (3, 32, 32))
    layers = [
        m
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == 26
    assert 0.35e6 < sum(p.numel() for p in model.parameters()) < 0.4e6
    assert as_target(model).measure((3, 32, 32)) == (64, 7)
    assert ResNet26(3, (1, 28, 28), width=0.25)(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize(
    "arguments", [{"num_classes": 0}, {"input_shape": (3, 4, 4)}, {"width": 0}]
)
def test_resnet26_refuses_bad_sizes(arguments):
    with pytest.raises(ValueError, match="at least 1 class"):
        ResNet26(**{"num_classes": 10, **arguments})


def test_the_first_convolution_keeps_the_size_of_the_image():
    first = ResNet26(3, (3, 16, 16), width=0.1).conv
    assert first(torch.zeros(1, 3, 16, 16)).shape[2:] == (16, 16)
