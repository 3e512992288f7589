"""Weighted maximum mean discrepancy by hand."""

import math

import pytest
import torch

from benchmarks.methods.weighted_mmd import WIDTHS, class_weights, weighted_mmd


def test_weighted_mmd_by_hand():
    source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0]])
    # Distances 0, 4, 4 in all pairs of three: their mean over ordered pairs is 8/3.
    scale = 8 / 3

    def kernel(squared):
        return sum(math.exp(-squared / (w * scale)) for w in WIDTHS) / len(WIDTHS)

    wanted = (1 + 1 + 2 * kernel(4)) / 4 + 1 - (1 + kernel(4))
    found = weighted_mmd(source, torch.ones(2), target)
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    # All weight on the sample that the target has: nothing is left.
    assert float(weighted_mmd(source, torch.tensor([3.0, 0.0]), target)) == pytest.approx(
        0, abs=1e-6
    )


def test_class_weights_by_hand():
    found = class_weights(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 2]), 3)
    assert found.tolist() == pytest.approx([(1 / 4) / (3 / 4), (2 / 4) / (1 / 4), 0])
