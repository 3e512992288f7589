"""Means of squares: sums in one go and one sample at a time."""

import pytest
import torch

from avalanche_cetl.information.gradients.second_moments import add_products


@pytest.mark.parametrize("entries", [2**12, 2**14])
def test_products_are_added_to_what_was_there(entries):
    torch.manual_seed(0)
    a, b = torch.randn(5, entries).double(), torch.randn(5, entries).double()
    sums = torch.ones(entries).double()
    add_products(sums, a, b)
    torch.testing.assert_close(sums, 1 + (a * b).sum(0), rtol=1e-12, atol=1e-12)
