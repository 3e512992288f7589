"""Associative domain adaptation (Haeusser, Frerix, Mordvintsev and Cremers, ICCV 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods.job import AdaptationJob
from benchmarks.methods.pairs import epochs_of, pairs


def association_loss(
    source: Tensor, labels: Tensor, target: Tensor, visit_weight: float = 0.1
) -> Tensor:
    """Compute the walker loss plus weighted visit loss, in nats.

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


def train(job: AdaptationJob) -> nn.Module:
    """Train on L_c + strength * the association loss."""
    network: Any = job.network()
    optimizer = torch.optim.Adam(network.parameters(), job.budget.learning_rate)
    network.train()
    with job.where.casting():
        for _ in epochs_of(job.budget.epochs, optimizer):
            for x, y, z in pairs(job):
                codes = network.forward_features(torch.cat([x, z]))
                own, other = codes[: len(x)], codes[len(x) :]
                loss = F.cross_entropy(network.head(own), y)
                loss = loss + job.strength * association_loss(own, y, other)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network
