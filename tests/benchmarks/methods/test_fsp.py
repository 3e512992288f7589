"""FSP matrices by hand."""

import torch
from torch import nn

from benchmarks.methods.fsp import fsp_loss


def test_fsp_matrices_by_hand():
    torch.manual_seed(0)
    student = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    teacher = [torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)]
    total = 0.0
    pooled = nn.functional.adaptive_max_pool2d(student[0], 2)
    for n in range(2):
        for a in range(3):
            for b in range(5):
                mine = (pooled[n, a] * student[1][n, b]).mean()
                total += (mine - (teacher[0][n, a] * teacher[1][n, b]).mean()) ** 2
    torch.testing.assert_close(fsp_loss(student, teacher), total / 30)
