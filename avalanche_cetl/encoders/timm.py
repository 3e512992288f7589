"""timm models as the frozen source network S."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.encoders.base import Denormalize, Encoder, match_channels
from avalanche_cetl.encoders.packaged import load_packaged

_INTERPOLATIONS = {"bilinear", "bicubic", "nearest"}


class TimmEncoder(Encoder):
    """A timm model as a frozen source network, with timm's own preprocessing.

    Images in [0, 1] are resized (antialiased, in one step to the model's input size; small
    images have no margin to crop away) and normalised as ``timm.data.resolve_data_config``
    says; grey images become as many equal channels as the model reads. Features are the
    pre-logits of ``forward_head(..., pre_logits=True)``.

    :param name: a name of ``timm.list_models()``.
    :param pretrained: download the weights that timm names. Needs a network.
    :param weights: a local ``.safetensors`` or ``.pth`` file instead, with timm's own keys
        (``.pth`` is read with ``weights_only=True``: plain tensors, no code). Or
        ``"package"``: ImageNet weights of ``tf_efficientnet_lite0``, ``1`` or ``2`` out of
        the packages that the extra ``offline`` installs.
    :param image_size: side in pixels to resize to; default: the model's own. Smaller is
        faster; models with a fixed token grid take only their own.
    :param input_mean: per-channel mean that the benchmark's transform subtracted, so that it
        can be undone; None for images in [0, 1].
    :param input_std: per-channel deviation that it divided by.
    :ivar dim: ``num_features`` of the pre-logits.
    :ivar num_classes: the model's classes, None when it has no classifier.
    :raises ValueError: for an unknown name, missing weights or a failed download.
    """

    module: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        weights: str | Path | None = None,
        *,
        image_size: int | None = None,
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.name = name
        if not timm.is_model(name):
            raise ValueError(f"{name!r} is no timm model; see timm.list_models('*{name[:6]}*').")
        packaged = weights == "package"
        if weights is not None and not packaged and not Path(weights).is_file():
            raise ValueError(f"weights={str(weights)!r}: there is no such file.")
        try:
            self.module = timm.create_model(
                name,
                pretrained=pretrained and weights is None,
                checkpoint_path=str(weights) if weights is not None and not packaged else "",
            )
            if packaged:
                load_packaged(self.module, name)
        except (OSError, RuntimeError) as problem:
            raise ValueError(
                f"the weights of {name!r} could not be loaded: {problem}\n"
                "Remedies: download them where there is a network and give the file as "
                "weights='file.safetensors', or take a model whose weights are in a package "
                "(weights='package'), or pretrained=False for random weights."
            ) from problem
        config = resolve_data_config({}, model=self.module)
        channels, height, width = config["input_size"]
        self.channels = channels
        self.size = (image_size, image_size) if image_size is not None else (height, width)
        self.interpolation = (
            config["interpolation"] if config["interpolation"] in _INTERPOLATIONS else "bilinear"
        )
        self.denormalize = Denormalize(input_mean, input_std)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1))
        self.freeze()
        with torch.no_grad():
            self.dim = self.encode(torch.zeros(1, channels, *self.size)).shape[1]
        self.num_classes = getattr(self.module, "num_classes", 0) or None

    def extra_repr(self) -> str:
        """Name model and preprocessing in ``print(model)`` and the fingerprint."""
        return f"{self.name!r}, size={self.size}, interpolation={self.interpolation!r}"

    def preprocess(self, x: Tensor) -> Tensor:
        """Resize and normalise images ``(N, 1 or 3, H, W)`` as the model was trained."""
        x = match_channels(self.denormalize(x), self.channels)
        if tuple(x.shape[2:]) != self.size:
            smooth = self.interpolation != "nearest"
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=smooth)
            x = x.clamp(0, 1)  # bicubic overshoots
        return (x - self.mean) / self.std

    def encode(self, x: Tensor) -> Tensor:
        """Give the pre-logits ``(N, dim)`` of preprocessed images."""
        return self.module.forward_head(self.module.forward_features(x), pre_logits=True)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Give the model's own logits ``(N, num_classes)``."""
        if self.num_classes is None:
            return super().logits(x)
        return self.module(self.preprocess(x))
