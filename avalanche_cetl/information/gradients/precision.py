"""What per-sample gradients are cast to before they are squared or added up, and autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def magnitude(gradient: Tensor) -> Tensor:
    """Return the absolute values of a complex gradient, a real one as it is.

    What is measured are squares: for a complex weight ``w = a + bi`` torch's gradient is
    ``dL/da + i dL/db``, and ``(dL/da)^2 + (dL/db)^2`` the square of its absolute value.
    """
    return gradient.abs() if gradient.is_complex() else gradient


def to_float32(values: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is.

    The squares of gradients below 2.4e-4 are 0 in float16, and a sum in bfloat16 stops to grow
    after some hundred terms.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def like_dtype(x: Tensor, gradient: Tensor) -> Tensor:
    """Return a layer's input, detached; floating point in the type of its output gradient."""
    x = x.detach()
    return x.to(gradient.dtype) if x.is_floating_point() else x


def flush_denormals(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a floating-point type, 0 where it is nothing beside its largest entry.

    Entries that a product cannot notice may be denormal numbers, with which processors calculate
    up to twenty times as slowly.
    """
    largest = x.abs().max() if x.numel() else x.new_zeros(())
    return torch.where(x.abs() < torch.finfo(dtype).eps ** 2 * largest, 0, x).to(dtype)


def current_autocast(device: torch.device) -> Callable[[], torch.autocast]:
    """Return a function that makes contexts with the autocast state of now.

    Without its cache: a weight that a pass without gradients has cast would have none in the next
    (torch up to 2.9 at least), and its Fisher information would be 0.
    """
    kind = device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
