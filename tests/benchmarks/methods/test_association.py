"""The association loss by hand."""

import math

import pytest
import torch

from benchmarks.methods.association import association_loss


def test_walker_and_visit_loss_by_hand():
    """Two source codes of two classes, two target codes, inner products log 3 or 0."""
    a = math.log(3)
    source = torch.tensor([[a, 0.0], [0.0, a]])
    target = torch.eye(2)
    labels = torch.tensor([0, 1])
    # There and back each go to the like code with 3/4: home with 9/16 + 1/16 = 5/8.
    walker, visit = -math.log(5 / 8), math.log(2)
    found = association_loss(source, labels, target, visit_weight=0.5)
    assert float(found) == pytest.approx(walker + 0.5 * visit)
    same = association_loss(source, torch.zeros(2), target, 0.0)
    assert float(same) == pytest.approx(-(math.log(5 / 8) + math.log(3 / 8)) / 2)
