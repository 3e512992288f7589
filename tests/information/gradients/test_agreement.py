"""How far a gradient may lie from autograd's."""

import pytest
import torch

from avalanche_cetl.information.gradients.agreement import Agreement, same_values

LARGE = torch.tensor([3.0, 4.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "error", "same"),
    [
        (torch.float64, 1e-7, True),
        (torch.float64, 1e-5, False),
        (torch.float32, 1e-3, True),
        (torch.float32, 1e-2, False),
        (torch.bfloat16, 0.05, True),
        (torch.bfloat16, 0.4, False),
    ],
)
def test_gradients_agree_up_to_the_rounding_of_their_type(dtype, error, same):
    truth = LARGE.to(dtype)
    agreement = Agreement([{"w": truth}], strict=True)
    assert agreement.holds((LARGE * (1 + error)).to(dtype), truth) is same


def test_a_tiny_gradient_may_be_rounding_and_in_float32_is_not_excused_in_a_strict_trial():
    for dtype, strict, same in (
        (torch.float64, True, True),
        (torch.float32, False, True),
        (torch.float32, True, False),
    ):
        tiny = LARGE.to(dtype) * (1e-13 if dtype == torch.float64 else 1e-8)
        agreement = Agreement([{"w": LARGE.to(dtype), "tiny": tiny}], strict)
        assert agreement.holds(-tiny, tiny) is same


def test_a_gradient_that_autograd_does_not_reach_is_zero():
    agreement = Agreement([{"w": LARGE, "unused": None}], strict=True)
    assert agreement.holds(torch.zeros(2).double(), None)
    assert not agreement.holds(torch.full((2,), 1e-3).double(), None)


def test_losses_are_compared_more_strictly_than_gradients():
    alone = torch.tensor([1.0, 1e-6])
    assert same_values(alone * (1 + 1e-4), alone)
    assert same_values(alone + torch.tensor([0.0, 1e-5]), alone)  # small beside the mean
    assert not same_values(alone * (1 + 2e-3), alone)
