"""ADDA's losses by hand."""

import math

import pytest
import torch

from benchmarks.methods.adda import discriminator_loss, mapping_loss


def test_both_losses_of_adda_by_hand():
    logit = torch.tensor([math.log(3)])  # taken for the source with 3/4
    found = discriminator_loss(logit, logit)
    assert float(found) == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2)
    assert float(mapping_loss(logit)) == pytest.approx(-math.log(3 / 4))
