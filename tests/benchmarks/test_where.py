"""Devices, precision and layout."""

import torch

from benchmarks.where import Where


def test_full_on_a_gpu_is_fast_and_all_else_is_plain():
    assert Where.of("full", "cuda:0") == Where("cuda:0", "bfloat16", True)
    assert Where.of("cpu", "cuda") == Where("cuda") and Where.of("full", "cpu") == Where()


def test_half_precision_sees_the_weights_as_they_are():
    """One context around a whole loop keeps no copies of weights of an earlier step."""
    layer = torch.nn.Linear(4, 4)
    x = torch.ones(2, 4)
    with Where("cpu", "bfloat16").casting():
        first = layer(x)
        first.sum().backward()
        with torch.no_grad():
            layer.weight -= 1.0
        assert (layer(x) - first).abs().min() > 1
