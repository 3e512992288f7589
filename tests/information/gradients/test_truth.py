"""The loss that routes are tried with."""

import pytest
import torch

from avalanche_cetl.information.gradients.truth import projection


def test_projection_weighs_no_two_outputs_alike_and_none_with_zero():
    outputs = torch.zeros(2, 5000, dtype=torch.float64, requires_grad=True)
    projection(outputs, 2)[0].backward()
    weights = outputs.grad[0].abs().sort().values
    assert weights[0] > 1e-6 and (weights.diff() > 1e-10).all()
    assert not outputs.grad[1].any()


def test_projection_reads_whatever_has_a_row_for_each_sample():
    rows, steps = torch.randn(3, 4), torch.randn(5, 3, 2)  # a recurrent layer's state is (5, N, 2)
    outputs = {
        "rows": rows,
        "state": (steps, torch.tensor(1.0), torch.randn(7)),
        "spectrum": torch.complex(rows, rows),
        "labels": torch.arange(3),
    }
    wanted = (
        projection(rows, 3)
        + projection(steps.transpose(0, 1), 3)
        + projection(torch.stack([rows, rows], 2), 3)
    )
    torch.testing.assert_close(projection(outputs, 3), wanted)


def test_projection_of_outputs_without_rows_is_refused():
    with pytest.raises(ValueError, match="no tensor with a row"):
        projection((torch.randn(4), torch.arange(3)), 3)
