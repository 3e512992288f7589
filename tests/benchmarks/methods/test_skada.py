"""SKADA's domain classifier, mended."""

import torch

from benchmarks.methods.skada import _domain_classifier


def test_the_domain_classifier_has_a_gradient():
    critic = _domain_classifier(8)
    codes = torch.rand(6, 8, requires_grad=True)
    out = critic(codes)
    assert out.shape == (6,) and ((out > 0) & (out < 1)).all()
    out.sum().backward()
    assert codes.grad.abs().max() > 0
