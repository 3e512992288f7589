"""timm models as the frozen source network S.

Images in [0, 1] are resized to the model's input size and normalised as
``timm.data.resolve_data_config`` says. The resizing is antialiased and goes straight to that size:
small images have no margin that could be cropped away. Grey images become as many equal channels
as the model reads.

Features are the pre-logits of ``forward_head(..., pre_logits=True)``, or the output of an earlier
layer, pooled to one vector an image:

- a map ``(N, C, H, W)`` becomes its average (``"avg"``) or its maximum (``"max"``) over positions,
  or, with a side g, its averages over a g x g grid, flattened to C g^2 features: these keep where
  things are in the image;
- tokens ``(N, L, C)`` are averaged (with ``"max"``: their maximum), or, with a side g, laid out as
  a map first.

Whether a layer's channels are second or last (Swin) is found by one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config  # type: ignore[attr-defined]
from torch import Tensor

from avalanche_cetl.common.channel_axis import channel_axis
from avalanche_cetl.common.hooks import Kept
from avalanche_cetl.encoders.base import Encoder, in_float32, like_network
from avalanche_cetl.encoders.pooling import check_pool, pooled
from avalanche_cetl.encoders.preprocessing import Preprocessing
from avalanche_cetl.encoders.scores import Scores
from avalanche_cetl.encoders.timm_models import create


class TimmEncoder(Encoder):
    """A timm model as a frozen source network, with timm's own preprocessing.

    Features are the pre-logits, or those of an earlier ``layer``.

    :param name: one of the names that :func:`timm.list_models` gives.
    :param pretrained: download the weights that timm names. Needs a network.
    :param weights: a local ``.safetensors`` or ``.pth`` file instead, with timm's own keys,
        loaded strictly (``.pth`` is read with ``weights_only=True``: plain tensors, no code).
        Or ``"package"``: ImageNet weights of ``tf_efficientnet_lite0``, ``1`` or ``2`` out of
        the packages that the extra ``offline`` installs.
    :param layer: an index into ``feature_info`` (negative: from the end), or the name of one
        of its modules or of any other; default: the pre-logits.
    :param pool: how a layer's output becomes one vector: ``"avg"`` (default), ``"max"``, or the
        side of a grid, a whole number. With the pre-logits: the model's ``global_pool`` (a
        string), or the side of a grid for its last feature map.
    :param image_size: side in pixels to resize to; default: the model's own. Smaller is
        faster; models with a fixed token grid take only their own.
    :param input_mean: per-channel mean that the benchmark's transform subtracted, so that it
        can be undone; None for images in [0, 1] (or bytes).
    :param input_std: per-channel deviation that it divided by.
    :param num_classes: classes of the weights that ``weights`` gives, where they are not the
        model's own (fine-tuned ones); 0 for weights without classifier.
    :param in_chans: channels that the network reads, where they are not the model's own: those
        of the weights, or of a download, which timm then adapts.
    :param mean: per channel, subtracted from images in [0, 1]; default: timm's for the model (of
        other ``in_chans`` the average over its channels).
    :param std: per channel, divided by; the same default.
    :param channels_last: whether the output of a ``layer`` of any other module has its channels
        last; needed only where the sizes leave it open, and then asked for.
    :ivar dim: number of features.
    :ivar size: height and width that images are resized to.
    :ivar crop: share of a photo's shorter side that timm's evaluation crops to, in (0, 1].
    :ivar num_classes: the model's classes, None when it has no classifier.
    :raises ValueError: for an unknown name (with near ones), a model without pooled features,
        weights that are missing or do not fit, a failed download, or an unknown layer.
    """

    module: Any
    _may_write = False  # preprocessing makes a new tensor

    def __init__(
        self,
        name: str,
        pretrained: bool = True,
        weights: str | Path | None = None,
        *,
        layer: int | str | None = None,
        pool: str | int | None = None,
        image_size: int | None = None,
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool | None = None,
    ):
        super().__init__()
        check_pool(pool, layer)
        self.name, self.layer, self.pool = name, layer, pool
        self.module = create(
            name,
            pretrained,
            weights,
            pool=pool if layer is None else None,
            num_classes=num_classes,
            in_chans=in_chans,
        )
        config = resolve_data_config({}, model=self.module)
        own, height, width = config["input_size"]
        channels = own if in_chans is None else in_chans
        self.size = (image_size, image_size) if image_size is not None else (height, width)
        self.crop = float(config["crop_pct"])
        self.preprocessing = Preprocessing(
            channels,
            self.size,
            _of_channels(config["mean"], channels) if mean is None else mean,
            _of_channels(config["std"], channels) if std is None else std,
            config["interpolation"],
            input_mean,
            input_std,
        )
        self.freeze()
        self._classifies: bool | None = None  # not tried yet
        self._outputs = Scores(f"{name!r}")
        self._hook = self._find_layer(layer)
        images = torch.zeros(1, channels, *self.size)
        with torch.no_grad():
            self._axis = self._find_axis(images, channels_last)
            features = self._try(images)
        if len(features) != 1:
            raise ValueError(
                f"layer={layer!r} of {name!r} gives {len(features)} rows for one image (parts of "
                "it, such as windows); name the block around it."
            )
        if features.dim() != 2:
            raise ValueError(
                f"{name!r} has no pooled features: its head gives {tuple(features.shape[1:])}; "
                "name a layer with layer=, or a side with pool=."
            )
        self.dim = features.shape[1]
        self.num_classes = getattr(self.module, "num_classes", 0) or None

    def extra_repr(self) -> str:
        """Return model, layer and pooling, for ``print(model)`` and the fingerprint."""
        about = f"{self.name!r}, layer={self.layer!r}, pool={self.pool!r}"
        return f"{about}, channels={self._axis}" if isinstance(self._hook, str) else about

    def preprocess(self, x: Tensor) -> Tensor:
        """Return images ``(N, 1 or 3, H, W)`` resized and normalised as the model was trained."""
        result: Tensor = self.preprocessing(x)
        return result

    def encode(self, x: Tensor) -> Tensor:
        """Return the features ``(N, dim)`` of preprocessed images."""
        return in_float32(self._encoded(like_network(x, self.module)))

    def _encoded(self, x: Tensor) -> Tensor:
        if self._hook is not None:
            return self._pooled(self._intermediate(x, self._hook))
        features = self.module.forward_features(x)
        if isinstance(self.pool, int):
            return self._pooled(features)
        result: Tensor = self.module.forward_head(features, pre_logits=True)
        return result

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the model's own logits ``(N, num_classes)``."""
        if self.num_classes is None:
            return super().logits(x)
        return self._outputs.read(self._classified, self.preprocess(x))

    def _classified(self, x: Tensor) -> Tensor:
        return in_float32(self.module(like_network(x, self.module)))

    @property
    def classifies_features(self) -> bool:
        """Whether the model's linear classifier reads these features; found by trying once."""
        if self._classifies is None:
            self._classifies = self._try_classifier()
        return self._classifies

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the model's logits from the pre-logits ``(N, dim)``."""
        if not self.classifies_features:
            return super().classify(features)
        layer = self.module.get_classifier()
        return in_float32(layer(features.to(layer.weight)))

    @torch.no_grad()
    def _try_classifier(self) -> bool:
        if self.layer is not None or isinstance(self.pool, int) or self.num_classes is None:
            return False
        layer = self.module.get_classifier()
        if not isinstance(layer, torch.nn.Linear) or layer.in_features != self.dim:
            return False
        size = (1, self.preprocessing.channels or 3, *self.size)
        x = torch.rand(size, generator=torch.Generator()).to(layer.weight)
        return torch.allclose(layer(self._encoded(x)), self.module(x), rtol=1e-3, atol=1e-4)

    def _try(self, x: Tensor) -> Tensor:
        try:
            return self.encode(x)
        except (AttributeError, TypeError, NotImplementedError, AssertionError, RuntimeError) as e:
            raise ValueError(
                f"{self.name!r} gives no pooled features (forward_features, forward_head) of "
                f"images of {self.size[0]} px: {e}. Take another model or image_size, or name a "
                "layer with layer=."
            ) from e

    def _find_layer(self, layer: int | str | None) -> int | str | None:
        """Return an index for ``forward_intermediates``, or else the name of a module to hook."""
        if layer is None:
            return None
        names = [info["module"] for info in getattr(self.module, "feature_info", [])]
        if isinstance(layer, str) and layer not in names:
            if layer and layer in dict(self.module.named_modules()):
                return layer
            raise ValueError(
                f"layer={layer!r} is not in {self.name!r}. Its feature layers are {names}; any "
                "other of its modules will do as well."
            )
        if isinstance(layer, int) and not -len(names) <= layer < len(names):
            raise ValueError(
                f"layer={layer} is out of range: {self.name!r} has {len(names)} feature layers, "
                f"{names}."
            )
        index = names.index(layer) if isinstance(layer, str) else layer % len(names)
        return index if hasattr(self.module, "forward_intermediates") else names[index]

    def _intermediate(self, x: Tensor, hook: int | str) -> Tensor:
        if isinstance(hook, int):
            result: Tensor = self.module.forward_intermediates(
                x, indices=[hook], intermediates_only=True
            )[0]
            return result
        layer = self.module.get_submodule(hook)
        with Kept(layer, f"layer={self.layer!r} of {self.name!r}") as kept:
            self.module(x)
        return kept.latest(f"layer={self.layer!r} did not run in {self.name!r}; name another.")

    def _find_axis(self, x: Tensor, channels_last: bool | None) -> int | None:
        """Return the axis of channels in what is pooled; None for timm's own rule."""
        name = self._hook
        if not isinstance(name, str):
            if channels_last is not None:
                raise ValueError(
                    f"channels_last={channels_last} goes with the name of a module as layer=; of "
                    "the pre-logits and of feature layers timm knows it."
                )
            return None
        layer = self.module.get_submodule(name)
        shapes: list[tuple[int, ...]] = []

        def run() -> None:
            shapes.append(tuple(self._intermediate(x, name).shape))

        try:
            found = channel_axis(self.module, layer, run)
        except (AssertionError, RuntimeError) as problem:
            raise ValueError(
                f"{self.name!r} does not run on images of {self.size[0]} px: {problem}. Take "
                "another image_size."
            ) from problem
        shape = shapes[-1]
        if len(shape) not in (3, 4):
            return None
        if channels_last is not None:
            return len(shape) - 1 if channels_last else 1
        embed = getattr(self.module, "patch_embed", getattr(self.module, "stem", None))
        patches = getattr(embed, "num_patches", None)
        if len(shape) == 3 and patches == shape[2] != shape[1]:
            return 1  # a layer that mixes tokens reads them turned round
        if found is None:
            raise ValueError(
                f"layer={self.layer!r} of {self.name!r} gives {shape[1:]} for an image, in which "
                "the channels may be first or last; say which with channels_last=False or True."
            )
        return found

    def _pooled(self, output: Tensor) -> Tensor:
        last = getattr(self.module, "output_fmt", "NCHW") == "NHWC" and self._hook is None
        return pooled(
            output,
            self.pool,
            axis=self._axis,
            channels_last=last,
            prefix_tokens=getattr(self.module, "num_prefix_tokens", 0),
            name=self.name,
        )


def _of_channels(values: Sequence[float], channels: int) -> Sequence[float]:
    return values if len(values) == channels else [sum(values) / len(values)]
