"""Types that gradients are cast to."""

import torch
from torch import nn

from avalanche_cetl.information.gradients.precision import (
    current_autocast,
    flush_denormals,
    like_dtype,
    magnitude,
    to_float32,
)


def test_half_precision_becomes_float32_and_nothing_else():
    for dtype in (torch.float16, torch.bfloat16):
        assert to_float32(torch.ones(2, dtype=dtype)).dtype is torch.float32
    assert to_float32(torch.ones(2).double()).dtype is torch.float64


def test_the_magnitude_of_a_complex_gradient_is_its_absolute_value():
    value = torch.complex(torch.tensor(3.0), torch.tensor(4.0))
    assert magnitude(value) == 5 and not magnitude(value).is_complex()


def test_inputs_take_the_type_of_the_output_gradient_and_indices_keep_theirs():
    x = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    cast = like_dtype(x, torch.ones(2))
    assert cast.dtype is torch.float32 and not cast.requires_grad
    assert like_dtype(torch.arange(2), torch.ones(2)).dtype is torch.int64


def test_what_no_product_can_notice_is_flushed():
    x = torch.tensor([[1.0, -1e-13, 1e-15], [0.0, 2e-40, -1.0]], dtype=torch.float64)
    flushed = flush_denormals(x, torch.float32)
    assert flushed.dtype is torch.float32
    assert flushed.tolist() == torch.tensor([[1.0, -1e-13, 0.0], [0.0, 0.0, -1.0]]).tolist()
    assert torch.equal(flush_denormals(x, torch.float64), x.where(x.abs() > 1e-30, 0))
    assert flush_denormals(torch.zeros(0, 2), torch.float32).shape == (0, 2)


def test_the_autocast_state_of_now_can_be_entered_later():
    with torch.autocast("cpu", torch.bfloat16):
        context = current_autocast(torch.device("cpu"))
    layer = nn.Linear(2, 2)
    assert layer(torch.ones(1, 2)).dtype is torch.float32
    with context():
        assert layer(torch.ones(1, 2)).dtype is torch.bfloat16
