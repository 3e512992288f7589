"""Types that gradients are cast to."""

import torch

from avalanche_cetl.information.gradients.precision import magnitude, single, wide, without_dust


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


def test_dust_is_what_no_product_can_notice():
    x = torch.tensor([[1.0, -1e-13, 1e-15], [0.0, 2e-40, -1.0]], dtype=torch.float64)
    found = without_dust(x, torch.float32)
    assert found.dtype is torch.float32
    assert found.tolist() == torch.tensor([[1.0, -1e-13, 0.0], [0.0, 0.0, -1.0]]).tolist()
    assert torch.equal(without_dust(x, torch.float64), x.where(x.abs() > 1e-30, 0))
    assert without_dust(torch.zeros(0, 2), torch.float32).shape == (0, 2)
