"""The base class of frozen source networks S."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """A frozen source network S: images in, one feature vector an image out.

    A subclass sets :attr:`dim` (and :attr:`num_classes` where it has logits) and implements
    :meth:`encode`; it may override :meth:`preprocess` and :meth:`logits`. After building its
    network it calls :meth:`freeze`. The encoder stays in eval mode whatever ``train()``
    says, runs without gradient, and is never trained.

    :ivar dim: number of features, D.
    :ivar num_classes: number of S's own classes, or None when it gives no logits.
    """

    dim: int
    num_classes: int | None = None

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
        """Give features ``(N, dim)`` of images ``(N, C, H, W)``, without gradient."""
        return self.encode(self.preprocess(x)).flatten(1)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Give S's own logits ``(N, num_classes)``.

        :raises ValueError: when S has no classifier.
        """
        raise ValueError(f"{type(self).__name__} has no classifier, so it gives no logits.")

    def fingerprint(self) -> str:
        """Give a SHA-256 over weights, buffers and configuration: tells encoders apart."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.extra_repr()}".encode())
        for name, tensor in self.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()


def match_channels(x: Tensor, channels: int) -> Tensor:
    """Turn grey images into ``channels`` equal ones, or colour into grey (their mean).

    :raises ValueError: for any other mismatch.
    """
    have = x.shape[1]
    if have == channels:
        return x
    if have == 1:
        return x.expand(-1, channels, -1, -1)
    if channels == 1:
        return x.mean(1, keepdim=True)
    raise ValueError(f"the images have {have} channels, the source network reads {channels}.")


class Denormalize(nn.Module):
    """Undo the normalisation that a benchmark's transform did: ``x * std + mean``.

    :param mean: per channel, or None for images that are in [0, 1] already.
    :param std: per channel, or None.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("give both input_mean and input_std, or neither.")
        self.active = mean is not None
        self.register_buffer("mean", torch.tensor(mean or [0.0]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0]).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Give images in [0, 1]."""
        return x * self.std + self.mean if self.active else x
