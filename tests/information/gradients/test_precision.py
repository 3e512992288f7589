"""Types that gradients are cast to."""

import torch

from avalanche_cetl.information.gradients.precision import magnitude, single, wide


def test_half_precision_is_widened_and_nothing_else():
    for dtype in (torch.float16, torch.bfloat16):
        assert single(torch.ones(2, dtype=dtype)).dtype is torch.float32
    assert single(torch.ones(2).double()).dtype is torch.float64


def test_the_magnitude_of_a_complex_gradient_is_its_absolute_value():
    value = torch.complex(torch.tensor(3.0), torch.tensor(4.0))
    assert magnitude(value) == 5 and not magnitude(value).is_complex()


def test_inputs_take_the_type_of_the_output_gradient_and_indices_keep_theirs():
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    found = wide(x, torch.ones(2))
    assert found.dtype is torch.float32 and not found.requires_grad
    assert wide(torch.arange(2), torch.ones(2)).dtype is torch.int64
