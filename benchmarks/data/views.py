"""Random views of training images: digits are turned, photographs are flipped and shifted.

The strong views are those of RandAugment (Cubuk et al. 2020) in its usual ranges, on a whole batch
at once: turned, sheared, scaled and shifted; contrast, colours and sharpness; and a square cut out
(DeVries and Taylor 2017). Inversion is left out of ``strong_views``, since it is what makes MNIST-M
of MNIST; ``inverting_views`` has it for half of the images, and results with it are said apart.
"""

from __future__ import annotations

import math

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


def _moved(x: Tensor) -> Tensor:
    """Turn by up to 20 degrees, shear, scale by up to 15 %, shift by up to 12 % of half a side."""

    def within(limit: float) -> Tensor:
        return (2 * torch.rand(len(x), device=x.device) - 1) * limit

    angle, scale, shear = within(math.radians(20)), 1 + within(0.15), within(0.2)
    rows = (
        torch.stack([angle.cos() * scale, shear - angle.sin() * scale, within(0.12)], 1),
        torch.stack([angle.sin() * scale, angle.cos() * scale, within(0.12)], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _coloured(x: Tensor, inverted: float) -> Tensor:
    """Change contrast and the channels' scales and offsets; invert a share of the images."""
    count, channels = x.shape[:2]

    def within(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, channels, 1, 1, device=x.device)

    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * within(0.3, 1.7) + mean
    x = x * within(0.6, 1.4, channels) + within(-0.2, 0.2, channels)
    return torch.where(within(0.0, 1.0) < inverted, 1 - x, x).clamp(0, 1)


def _sharpened(x: Tensor) -> Tensor:
    """Blur or sharpen by a 3 x 3 binomial filter."""
    line = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
    flat = x.reshape(-1, 1, *x.shape[2:])
    blurred = F.conv2d(flat, torch.outer(line, line)[None, None], padding=1).reshape(x.shape)
    amount = 2 * torch.rand(len(x), 1, 1, 1, device=x.device) - 1
    return (x + (blurred - x) * amount).clamp(0, 1)


def _cut_out(x: Tensor) -> Tensor:
    """Make a square of a quarter of the side, and one pixel, grey."""
    count, _, height, width = x.shape
    half = min(height, width) // 8
    y, z = (torch.randint(0, side, (count, 1), device=x.device) for side in (height, width))
    down = (torch.arange(height, device=x.device) - y).abs() <= half
    right = (torch.arange(width, device=x.device) - z).abs() <= half
    return torch.where((down.unsqueeze(2) & right.unsqueeze(1)).unsqueeze(1), 0.5, x)


def strong_views(x: Tensor) -> Tensor:
    """Return strong views of images ``(N, C, H, W)`` in [0, 1], none of them inverted."""
    return _cut_out(_sharpened(_coloured(_moved(x), inverted=0.0)))


def inverting_views(x: Tensor) -> Tensor:
    """Return strong views of images ``(N, C, H, W)`` in [0, 1], half of them inverted."""
    return _cut_out(_sharpened(_coloured(_moved(x), inverted=0.5)))


class JitterOne:
    """The same for a single image ``(1, H, W)``, as a data set's transform."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return the jittered image."""
        return jitter(image.unsqueeze(0))[0]
