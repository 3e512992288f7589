"""From images as the target network sees them to the input of a source network."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.common.images import recoloured
from avalanche_cetl.common.warning import warn_caller

#: How images are resized.
Interpolation = Literal["bilinear", "bicubic", "nearest"]

# How far images may lie outside [0, 1]: on average before they are refused (noise of deviation
# 0.3 on black images is at 0.12, standardised or in [-1, 1] they are at 0.2 to 1), and anywhere
# before a warning.
_REFUSED = 0.15
_WARNED = 0.25


class Preprocessing(nn.Module):
    """The source network's input: the benchmark's normalisation undone, resized, normalised.

    Channels are matched as well. Bytes (uint8) are raw images: they are divided by 255, and no
    normalisation is undone. Floats have to be in [0, 1] after the benchmark's normalisation is
    undone: others would be clamped, or normalised a second time. Where nothing is resized or
    normalised here, floats pass unchanged.

    :param channels: that the network reads; None for any.
    :param size: height and width in pixels that it reads; None leaves images as they are.
    :param mean: per channel, or one value for all, subtracted from images in [0, 1]; None for 0.
    :param std: per channel or one value, divided by; None for 1.
    :param interpolation: ``"bilinear"``, ``"bicubic"`` (both antialiased) or ``"nearest"``;
        another of timm's counts as bilinear.
    :param input_mean: mean that the benchmark's transform subtracted, per channel of the images
        as they are given, or one value; None for images that are in [0, 1] already.
    :param input_std: deviation that it divided by, in the same way.
    :raises ValueError: when one of input_mean and input_std is missing, an entry of a mean is not
        finite, one of a deviation not > 0 and finite, or there are more or less than channels.
    """

    mean: Tensor
    std: Tensor
    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self,
        channels: int | None,
        size: tuple[int, int] | None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str = "bilinear",
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
    ):
        super().__init__()
        if (input_mean is None) != (input_std is None):
            raise ValueError("give both input_mean and input_std, or neither.")
        self.channels, self.size = channels, size
        self.interpolation = (
            interpolation if interpolation in get_args(Interpolation) else "bilinear"
        )
        # Grey images may be given to a network of any channels, and colour to one that reads grey.
        given = {channels, 3} if channels == 1 else {channels}
        _check("mean", mean, {channels})
        _check("input_mean", input_mean, given)
        _check("std", std, {channels}, deviation=True)
        _check("input_std", input_std, given, deviation=True)
        self._denormalize = input_mean is not None
        self._normalizes = mean is not None or std is not None
        self._warned = False
        for name, values, default in (
            ("mean", mean, 0.0),
            ("std", std, 1.0),
            ("input_mean", input_mean, 0.0),
            ("input_std", input_std, 1.0),
        ):
            tensor = torch.tensor([default] if values is None else list(values))
            self.register_buffer(name, tensor.view(-1, 1, 1))

    def extra_repr(self) -> str:
        """Return channels, size and interpolation, for ``print(model)`` and the fingerprint."""
        return f"channels={self.channels}, size={self.size}, interpolation={self.interpolation!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's input for images ``(N, C, H, W)``.

        :raises ValueError: for other channels than the network's, but grey for any number of them
            and colour for grey; for other channels than input_mean or input_std has, unless that
            is one value; and for floats far outside [0, 1].
        :raises TypeError: for integers other than bytes.
        """
        resizes = self.size is not None and tuple(x.shape[2:]) != self.size
        if x.dtype in (torch.uint8, torch.bool):
            x = x.float() / (255 if x.dtype == torch.uint8 else 1)
        elif not x.is_floating_point():
            raise TypeError(
                f"the images are {x.dtype}; give floats in [0, 1] or bytes (uint8), e.g. with "
                "torchvision.transforms.v2.ToDtype(torch.float32, scale=True)."
            )
        else:
            if self._denormalize:
                self._check_statistics(x)
                x = x * self.input_std + self.input_mean
            if resizes or self._normalizes:
                self._check_range(x)
        if self.channels is not None:
            x = recoloured(x, self.channels)
        if resizes:
            smooth = self.interpolation != "nearest"
            if smooth and x.is_cpu and x.dtype in (torch.float16, torch.bfloat16):
                x = x.float()  # torch has no antialiased resize of these on the CPU
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=smooth)
            x = x.clamp(0, 1)  # bicubic overshoots
        return (x - self.mean) / self.std

    def _check_statistics(self, x: Tensor) -> None:
        for word, values in (("input_mean", self.input_mean), ("input_std", self.input_std)):
            if len(values) in (1, x.shape[1]):
                continue
            if x.shape[1] > 1 or not torch.equal(values, values[:1].expand_as(values)):
                raise ValueError(
                    f"{word} has {len(values)} values, and the images have {x.shape[1]} "
                    "channel(s): give one value for each channel that the benchmark's transform "
                    "normalised, or one for all."
                )

    def _check_range(self, x: Tensor) -> None:
        if not x.numel():
            return
        low, high = (float(end) for end in x.aminmax())
        if low >= -_WARNED and high <= 1 + _WARNED:
            return
        outside = float((x - x.clamp(0, 1)).abs().mean())
        if outside > _REFUSED:
            undone = "once input_mean and input_std are undone, " if self._denormalize else ""
            remedy = (
                "divide them by 255, or give bytes (uint8)"
                if high > 16
                else "if the benchmark's transform standardised them, say how with input_mean= and "
                "input_std="
            )
            raise ValueError(
                f"{undone}the images lie in [{low:.3g}, {high:.3g}], but the source network's "
                f"preprocessing reads images in [0, 1]: {remedy}."
            )
        if not self._warned:
            self._warned = True
            warn_caller(
                f"some images lie in [{low:.3g}, {high:.3g}]; the source network's preprocessing "
                "reads [0, 1], and clamps what it resizes. This is said once.",
                RuntimeWarning,
            )


def _check(
    word: str,
    values: Sequence[float] | None,
    channels: Collection[int | None],
    deviation: bool = False,
) -> None:
    """Raise ValueError unless there is one finite value, or one for each channel."""
    if values is None:
        return
    told = f"{word}={[float(value) for value in values]}"
    if deviation and not all(value > 0 for value in values):
        raise ValueError(f"{told}: deviations have to be > 0.")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{told}: the values have to be finite.")
    counts = {1} | {count for count in channels if count is not None}
    if not len(values) or (None not in channels and len(values) not in counts):
        allowed = " or ".join(map(str, sorted(counts)))
        raise ValueError(
            f"{told} has {len(values)} values: give {allowed}, one for all channels or one each."
        )
