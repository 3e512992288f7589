"""Associative domain adaptation (Haeusser, Frerix, Mordvintsev and Cremers, ICCV 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.training import Augment, Images, epochs_of, pairs


def association_loss(
    source: Tensor, labels: Tensor, target: Tensor, visit_weight: float = 0.1
) -> Tensor:
    """Walker loss plus weighted visit loss, in nats.

    A walk goes from a source code to a target code and back, each step with the softmax of
    inner products. The walker loss is the cross entropy of the round trip with the uniform
    distribution over source codes of the same class; the visit loss that of the mean visit of
    target codes with the uniform distribution over all of them.

    :param source: codes ``(N, D)``.
    :param labels: of the source codes, ``(N,)``.
    :param target: codes ``(M, D)``.
    :return: a scalar.
    """
    match = source @ target.T
    there, back = match.softmax(1), match.T.softmax(1)
    round_trip = (there @ back).clamp_min(1e-12)
    same = (labels[:, None] == labels[None, :]).to(source.dtype)
    walker = -(same / same.sum(1, keepdim=True) * round_trip.log()).sum(1).mean()
    visit = -there.mean(0).clamp_min(1e-12).log().mean()
    return walker + visit_weight * visit


def train(
    network: nn.Module,
    source: Images,
    target: Tensor,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    augment: Augment,
    weight: float = 1.0,
) -> None:
    """Train a network that has ``forward_features`` and ``head`` on L_c + weight * loss.

    :param weight: of the association loss, >= 0.
    """
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    network.train()
    for _ in epochs_of(epochs, optimizer):
        for x, y, z in pairs(source, target, batch, augment):
            codes = network.forward_features(torch.cat([x, z]))  # type: ignore[operator]
            own, other = codes[: len(x)], codes[len(x) :]
            loss = F.cross_entropy(network.head(own), y)  # type: ignore[operator]
            loss = loss + weight * association_loss(own, y, other)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
