"""Random views of training images: digits are turned, photographs are flipped and shifted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.demo import jitter


def views(x: Tensor) -> Tensor:
    """Flip half of the images ``(N, C, H, W)``, and shift each by up to 4 pixels."""
    count, channels, height, width = x.shape
    flipped = (torch.rand(count, device=x.device) < 0.5).view(-1, 1, 1, 1)
    x = F.pad(torch.where(flipped, x.flip(3), x), (4, 4, 4, 4))
    down, right = torch.randint(0, 9, (2, count, 1), device=x.device)
    rows = (down + torch.arange(height, device=x.device)).view(count, 1, height, 1)
    x = x.gather(2, rows.expand(-1, channels, -1, width + 8))
    columns = (right + torch.arange(width, device=x.device)).view(count, 1, 1, width)
    return x.gather(3, columns.expand(-1, channels, height, -1))


class JitterOne:
    """The same for a single image ``(1, H, W)``, as a data set's transform."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return the jittered image."""
        return jitter(image.unsqueeze(0))[0]
