"""The base class of frozen source networks S."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType

import torch
from torch import Tensor, nn

from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.encoders.scores import Scores


class Encoder(nn.Module):
    """A frozen source network S: images in, one feature vector an image out.

    A subclass sets ``dim`` (and ``num_classes`` where it has logits) and implements
    :meth:`encode`; it may override :meth:`preprocess` and :meth:`logits`. It returns its settings
    in ``extra_repr``, so that :meth:`fingerprint` covers them, and calls :meth:`freeze` once its
    network is built.

    An encoder is never trained: it stays in eval mode (``train()`` changes nothing) and runs
    without gradient. It does not change the images that it reads. Its features are in float32,
    whatever type the network computes in.

    :ivar dim: number of features, D.
    :ivar num_classes: number of S's own classes, or None when it gives no logits.
    """

    dim: int
    num_classes: int | None = None
    #: Whether preprocess() and encode() may write into the images they are given.
    _may_write = True
    _scores: Scores | None = None

    def freeze(self) -> None:
        """Switch off gradients and training mode for good."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Encoder:
        """Stay in eval mode: a frozen network's BatchNorm must not learn."""
        return super().train(False)

    def preprocess(self, x: Tensor) -> Tensor:
        """Return S's input for images as the target network reads them. Default: unchanged."""
        return x

    def encode(self, x: Tensor) -> Tensor:
        """Return features of preprocessed images; implemented by subclasses."""
        raise NotImplementedError(
            f"{type(self).__name__} has no method encode(x), which returns features (N, dim)."
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return features ``(N, dim)`` of images ``(N, C, H, W)``, without gradient."""
        x = own_copy(x) if self._may_write else x
        features = self.encode(self.preprocess(x))
        if not isinstance(features, Tensor) or not features.dim():
            given = "a scalar" if isinstance(features, Tensor) else f"a {type(features).__name__}"
            raise TypeError(
                f"{type(self).__name__}.encode() gave {given}: a tensor (N, dim), a row an image."
            )
        return in_float32(features).flatten(1)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return S's own logits ``(N, num_classes)``.

        :raises ValueError: when S has no classifier.
        """
        raise ValueError(self.no_logits)

    @property
    def no_logits(self) -> str:
        """Return why S gives no logits, where ``num_classes`` is None."""
        return f"{type(self).__name__} has no classifier, so it gives no logits."

    @property
    def classifies_features(self) -> bool:
        """Whether :meth:`classify` works: S's own classifier reads these very features."""
        return False

    def classify(self, features: Tensor) -> Tensor:
        """Return S's own logits ``(N, num_classes)`` from its features ``(N, dim)``.

        With stored features S's logits then cost one layer, not a pass through S.

        :raises ValueError: when the features are not what a classifier of S reads.
        """
        raise ValueError(
            f"the features of this {type(self).__name__} are not what its classifier reads; "
            "logits(images) may work."
        )

    def cheapest_logits(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Return S's own logits ``(N, num_classes)``, from the features where that is possible.

        Where :meth:`classify` and :meth:`logits` give probabilities, these are their logits; see
        :class:`~avalanche_cetl.encoders.scores.Scores`.

        :param x: images ``(N, C, H, W)``.
        :param features: their features ``(N, dim)``, where they are known.
        """
        if features is not None and self.classifies_features:
            return self._logits_of(self.classify, features)
        return self._logits_of(self.logits, x)

    def _logits_of(self, classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self._scores is None:
            self._scores = Scores(type(self).__name__)
        return self._scores.read(classifier, x)

    def fingerprint(self) -> str:
        """Return a SHA-256 that differs between encoders of other weights or layers.

        It is taken over structure, settings (``extra_repr``), weights and buffers, and over the
        code of a subclass that is not this package's.
        """
        found = Fingerprint().module(self)
        for parent in type(self).__mro__:
            if parent is Encoder:
                break
            if not parent.__module__.startswith("avalanche_cetl."):
                functions = {n: f for n, f in vars(parent).items() if isinstance(f, FunctionType)}
                found.value([functions[name].__code__ for name in sorted(functions)])
        return found.hexdigest()

    def _answer_noise(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return random combinations of its features of two images of noise, always the same two.

        The second has little contrast, which a transform that stretches images shows.

        Encoders of one fingerprint are told apart by them, see
        :class:`~avalanche_cetl.encoders.origin.Origin`.

        :param shape: of an image.
        :param dtype: of the images: floats in [0, 1], bytes in [0, 255], other integers 0 or 1.
        :return: ``(2, 8)``.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(2, *shape, generator=generator)
        if dtype.is_floating_point or dtype == torch.uint8:
            noise[1] = 0.2 + 0.3 * noise[1]
        if not dtype.is_floating_point:
            noise = noise * (256 if dtype == torch.uint8 else 2)
        images = noise.to(dtype).to(home_of(self))
        features = torch.cat([self(image) for image in images.split(1)]).cpu()
        return features @ torch.randn(features.shape[1], 8, generator=generator)


def home_of(encoder: nn.Module) -> torch.device:
    """Return the device that a network is on."""
    tensors = (t for t in encoder.state_dict().values() if isinstance(t, Tensor))
    return next((t.device for t in tensors), torch.device("cpu"))


def in_float32(output: Tensor) -> Tensor:
    """Return a network's output in float32: from half, double or quantised values."""
    return output.dequantize().float() if output.is_quantized else output.float()


def like_network(x: Tensor, network: nn.Module) -> Tensor:
    """Return a batch in the floating type of the network's first weights; bytes divided by 255.

    Other integers (token numbers) stay as they are. A network without such weights reads float32.
    """
    if x.dtype == torch.uint8:
        x = x.float() / 255
    elif x.dtype == torch.bool:
        x = x.float()
    if not x.is_floating_point():
        return x
    types = (p.dtype for p in network.parameters() if p.is_floating_point())
    return x.to(next(types, torch.float32))


def check_frozen(source: nn.Module) -> None:
    """Raise ValueError where a source network has parameters that learn."""
    trainable = [name for name, p in source.named_parameters() if p.requires_grad]
    if trainable:
        how = "source.requires_grad_(False)"
        if isinstance(source, Encoder):
            how = f"self.freeze() at the end of {type(source).__name__}.__init__"
        raise ValueError(
            f"the source network is frozen in CETL, but {len(trainable)} of its parameters require "
            f"gradients ({trainable[0]}, ...); call {how}."
        )
