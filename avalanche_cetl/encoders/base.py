"""The base class of frozen source networks S."""

from __future__ import annotations

from types import FunctionType

import torch
from torch import Tensor, nn

from avalanche_cetl.common.inputs import own_copy
from avalanche_cetl.encoders.fingerprint import Fingerprint


class Encoder(nn.Module):
    """A frozen source network S: images in, one feature vector an image out.

    A subclass sets :attr:`dim` (and :attr:`num_classes` where it has logits) and implements
    :meth:`encode`; it may override :meth:`preprocess` and :meth:`logits`, and names its
    settings in ``extra_repr``, so that :meth:`fingerprint` knows them. After building its
    network it calls :meth:`freeze`. The encoder stays in eval mode whatever ``train()``
    says, runs without gradient, and is never trained. Images that it is given stay as they are,
    and its features are in float32, whatever the network computes in.

    :ivar dim: number of features, D.
    :ivar num_classes: number of S's own classes, or None when it gives no logits.
    """

    dim: int
    num_classes: int | None = None
    #: Whether preprocess() and encode() may write into the images they are given.
    _may_write = True

    def freeze(self) -> None:
        """Switch off gradients and training mode for good."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Encoder:
        """Stay in eval mode: a frozen network's BatchNorm must not learn."""
        return super().train(False)

    def preprocess(self, x: Tensor) -> Tensor:
        """Turn images as the target network sees them into S's input. Default: unchanged."""
        return x

    def encode(self, x: Tensor) -> Tensor:
        """Give features of preprocessed images; implemented by subclasses."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return features ``(N, dim)`` of images ``(N, C, H, W)``, without gradient."""
        x = own_copy(x) if self._may_write else x
        return in_float32(self.encode(self.preprocess(x))).flatten(1)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Give S's own logits ``(N, num_classes)``.

        :raises ValueError: when S has no classifier.
        """
        raise ValueError(f"{type(self).__name__} has no classifier, so it gives no logits.")

    @property
    def classifies_features(self) -> bool:
        """Whether :meth:`classify` works: S's own classifier reads these very features."""
        return False

    def classify(self, features: Tensor) -> Tensor:
        """Give S's own logits ``(N, num_classes)`` from its features ``(N, dim)``.

        With stored features S's logits then cost one layer, not a pass through S.

        :raises ValueError: when the features are not what a classifier of S reads.
        """
        raise ValueError(
            f"the features of this {type(self).__name__} are not what its classifier reads; "
            "logits(images) may work."
        )

    def cheapest_logits(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Give S's own logits ``(N, num_classes)`` in the cheapest way there is.

        :param x: images ``(N, C, H, W)``.
        :param features: their features ``(N, dim)``, where they are known.
        """
        if features is not None and self.classifies_features:
            return self.classify(features)
        return self.logits(x)

    def fingerprint(self) -> str:
        """Return a SHA-256 that tells encoders apart.

        Over structure, settings (``extra_repr``), weights and buffers, and over the code of a
        subclass that is not this package's.
        """
        found = Fingerprint().module(self)
        for parent in type(self).__mro__:
            if parent is Encoder:
                break
            if not parent.__module__.startswith("avalanche_cetl."):
                functions = {n: f for n, f in vars(parent).items() if isinstance(f, FunctionType)}
                found.value([functions[name].__code__ for name in sorted(functions)])
        return found.hexdigest()


def in_float32(output: Tensor) -> Tensor:
    """Return what a network gave in float32: from half, double or quantised values."""
    return output.dequantize().float() if output.is_quantized else output.float()


def like_network(x: Tensor, network: nn.Module) -> Tensor:
    """Return a batch in the floating type of the network's first weights; bytes by 255.

    Other integers (token numbers), and networks without such weights, leave it as it is: those
    read float32.
    """
    if x.dtype == torch.uint8:
        x = x.float() / 255
    elif x.dtype == torch.bool:
        x = x.float()
    if not x.is_floating_point():
        return x
    types = (p.dtype for p in network.parameters() if p.is_floating_point())
    return x.to(next(types, torch.float32))
