"""Whether two gradients are the same up to rounding.

A route is either right, and differs from autograd by rounding, or wrong, and differs by a term.
The tolerances have to lie between the two. Measured over the 69 small networks that the tests try
(``tests/information/zoo.py``), as norms of differences over norms of gradients: a right route
differs by 3e-15 at the most in float64, by 2e-6 in float32 and by 0.04 under bfloat16 autocast; a
wrong one, in float64 and float32, by 0.4 at the least.

It breaks where a wrong route differs by less than the tolerance: a term that is missing from a
gradient, but makes less than 0.5 % of it in float32, is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_cetl.information.gradients.plain import Gradients
from avalanche_cetl.information.gradients.precision import magnitude

#: How far a gradient may lie from autograd's, relative to its norm. In float32 it is not rounding
#: that decides, but near-ties in max pooling, which another batch may break differently: one of
#: them moves a gradient by some 1e-3.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
#: The same for half precision and under autocast, which rounds to three digits at every layer.
_HALF_TOLERANCE = 0.1
#: A gradient whose norm is below this share of the largest parameter's may be rounding alone: the
#: bias of a key in front of a softmax, or of a layer in front of an InstanceNorm, has none in
#: truth. Such a one has a relative error of 1, whatever computes it. The shares are some thousand
#: roundings of float64 (eps = 2e-16) and ten of float32 (eps = 1e-7); half precision has eps = 1e-3
#: to 8e-3.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
_HALF_ROUNDING = 1e-2
#: Losses are compared ten times as strictly as gradients: they pass no backward pass, and a loss
#: that differs is the sign of samples that influence one another.
_LOSS_SHARE = 0.1


class Agreement:
    """How far gradients may lie from plain autograd's.

    :param truth: plain gradients of some samples, of all measured parameters.
    :param strict: allow for rounding in tiny gradients in float64 alone. In float32 a gate of
        1e-6, as new vision transformers have it, makes gradients as small as rounding does.
    """

    def __init__(self, truth: Sequence[Gradients], strict: bool):
        found = [g for gradients in truth for g in gradients.values() if g is not None]
        self._largest = max((float(torch.linalg.vector_norm(g)) for g in found), default=0.0)
        self._strict = strict

    def holds(self, found: Tensor, wanted: Tensor | None) -> bool:
        """Return whether one sample's gradient is autograd's, up to rounding.

        :param found: real; for a complex parameter the absolute values.
        :param wanted: autograd's; None where the loss does not reach the parameter.
        """
        wanted = torch.zeros_like(found) if wanted is None else magnitude(wanted.detach())
        difference = float(torch.linalg.vector_norm(found - wanted.to(found.dtype)))
        size = float(torch.linalg.vector_norm(wanted))
        share = _ROUNDING.get(wanted.dtype, _HALF_ROUNDING)
        if self._strict and wanted.dtype != torch.float64:
            share = 0.0
        return difference <= tolerance(wanted.dtype, wanted.device) * size + share * self._largest


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Return how far, relative to its norm, a gradient of that type may lie from autograd's."""
    if torch.is_autocast_enabled(device.type):
        return _HALF_TOLERANCE
    return _TOLERANCE.get(dtype, _HALF_TOLERANCE)


def same_values(values: Tensor, alone: Tensor) -> bool:
    """Return whether losses in a batch are those of the samples on their own, up to rounding.

    The mean of all losses counts as well as each loss by itself, which may be near 0.
    """
    room = _LOSS_SHARE * tolerance(alone.dtype, alone.device)
    return bool(((values - alone).abs() <= room * (alone.abs() + alone.abs().mean())).all())
