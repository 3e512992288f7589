"""ADDA's losses by hand, and its training."""

import math

import pytest
import torch

from benchmarks.methods.adda import discriminator_loss, mapping_loss, train
from benchmarks.methods.plain import logits


def test_both_losses_of_adda_by_hand():
    logit = torch.tensor([math.log(3)])  # taken for the source with 3/4
    found = discriminator_loss(logit, logit)
    assert float(found) == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2)
    assert float(mapping_loss(logit)) == pytest.approx(-math.log(3 / 4))


def test_adda_learns_the_target(adaptation_job):
    job, labels = adaptation_job(strength=0.1, learning_rate=5e-3)
    found = logits(train(job), job.pair.target).argmax(1)
    assert float((found == labels).float().mean()) > 0.5
