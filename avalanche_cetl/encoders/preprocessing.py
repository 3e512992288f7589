"""From images as the target network sees them to the input of a source network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.common.images import recoloured

_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


class Preprocessing(nn.Module):
    """Undo the benchmark's normalisation, match channels, resize, normalise.

    :param channels: that the network reads; None for any.
    :param size: height and width in pixels that it reads; None leaves images as they are.
    :param mean: per channel, subtracted from images in [0, 1]; None for 0.
    :param std: per channel, divided by; None for 1.
    :param interpolation: ``"bilinear"``, ``"bicubic"`` (both antialiased) or ``"nearest"``;
        another of timm's counts as bilinear.
    :param input_mean: per-channel mean that the benchmark's transform subtracted; None for
        images that are in [0, 1] already.
    :param input_std: per-channel deviation that it divided by.
    :raises ValueError: when one of input_mean and input_std is missing.
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
        self.interpolation = interpolation if interpolation in _INTERPOLATIONS else "bilinear"
        self._denormalize = input_mean is not None
        for name, values, default in (
            ("mean", mean, 0.0),
            ("std", std, 1.0),
            ("input_mean", input_mean, 0.0),
            ("input_std", input_std, 1.0),
        ):
            tensor = torch.tensor([default] if values is None else list(values))
            self.register_buffer(name, tensor.view(-1, 1, 1))

    def extra_repr(self) -> str:
        """Size and interpolation."""
        return f"channels={self.channels}, size={self.size}, interpolation={self.interpolation!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Turn images ``(N, C, H, W)`` into the network's input.

        :raises ValueError: for other channels than the network's, but grey for any number of them
            and colour for grey.
        """
        if self._denormalize:
            x = x * self.input_std + self.input_mean
        if self.channels is not None:
            x = recoloured(x, self.channels)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            smooth = self.interpolation != "nearest"
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=smooth)
            x = x.clamp(0, 1)  # bicubic overshoots
        return (x - self.mean) / self.std
