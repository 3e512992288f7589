"""Bundles of gradients: one copy per sample, and slow ones that are kept."""

import torch

from avalanche_cetl.information.gradients.bundles import ExpandedBundle, SlowBundle


class Counting(SlowBundle):
    """Gradients that count how often they are computed."""

    def __init__(self):
        super().__init__({"w": torch.zeros(3)})
        self.computed = 0

    def _computed(self, loss, rows):
        self.computed += 1
        return {"w": torch.ones(rows.stop - rows.start, 3) * (loss + 1)}


def test_slow_gradients_are_computed_once_and_may_be_written_into():
    bundle = Counting()
    first = bundle.gradients(0, slice(0, 2))["w"]
    first.zero_()
    assert torch.equal(bundle.gradients(0, slice(0, 2))["w"], torch.ones(2, 3))
    assert bundle.computed == 1
    bundle.gradients(1, slice(0, 2))
    assert bundle.computed == 2


def test_an_expanded_parameter_has_one_gradient_per_sample_and_zeros_without_a_loss():
    g = torch.arange(6.0).reshape(3, 2)
    bundle = ExpandedBundle("token", torch.zeros(1, 2), [g, None])
    assert torch.equal(bundle.gradients(0, slice(1, 3))["token"], g[1:].unsqueeze(1))
    assert bundle.alive(0) and not bundle.alive(1)
    assert not bundle.gradients(1, slice(0, 3))["token"].any()
