"""The deviation that features are divided by when they are standardised."""

from __future__ import annotations

import torch
from torch import Tensor

#: The floor of a deviation, as a share of the root mean square of all deviations.
SHARE = 0.1


def floored_deviation(
    features: Tensor, *, correction: int, share: float | Tensor = SHARE
) -> Tensor:
    """Return the standard deviation of each feature, none below a floor.

    Why there is a floor: a rectified feature may be zero on all but one image in a thousand. Its
    deviation is then tiny, and an image on which it does fire would be divided by almost nothing:
    one entry of the standardised vector would be hundreds of times as large as all others, and
    with it the decoder's output, or the logits of a probe. A feature that is constant but for
    rounding would even turn rounding errors into a signal. The floor is ``share`` times the root
    mean square of all features' deviations, so it moves with the scale of the features, and a
    network whose features are all small keeps them. Features that vary as much as others lie far
    above it and are standardised exactly.

    It would break where the scales of the features differ by more than a factor of ten by
    intention: the small ones then stay small after the division.

    :param features: ``(N, dim)``, finite.
    :param correction: subtracted from N: 0 divides by N, 1 by N - 1.
    :param share: see above. A float is multiplied in the features' precision, a scalar tensor in
        float64 in double precision.
    :return: ``(dim,)``; zeros where no feature varies at all.
    """
    deviation = features.std(0, correction=correction)
    floor = share * deviation.square().mean().sqrt()
    return deviation.clamp_min(floor) if floor > 0 else torch.zeros_like(deviation)
