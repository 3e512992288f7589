"""Weighted maximum mean discrepancy, WDA (Yan et al., CVPR 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods.job import AdaptationJob
from benchmarks.methods.pairs import epochs_of, pairs
from benchmarks.methods.plain import logits

#: Widths of the Gaussian kernels, as multiples of the mean squared distance.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Weight of the loss on labels that the network gives the target itself.
PSEUDO_WEIGHT = 0.1


def weighted_mmd(source: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Compute the squared distance of the kernel means, with weighted source samples.

    ``|sum_i w_i phi(s_i) / sum_i w_i - mean_j phi(t_j)|^2`` in the space of the mean of five
    Gaussian kernels, whose widths are multiples of the batch's mean squared distance.

    :param source: codes ``(N, D)``.
    :param weights: of the source codes, ``(N,)``, >= 0, not all zero.
    :param target: codes ``(M, D)``.
    :return: a scalar >= 0.
    """
    codes = torch.cat([source, target])
    signs = torch.cat([weights / weights.sum(), -torch.ones_like(target[:, 0]) / len(target)])
    distances = (codes[:, None] - codes[None]).square().sum(-1)
    scale = distances.detach().sum() / max(1, len(codes) * (len(codes) - 1))
    kernel = sum(torch.exp(-distances / (width * scale.clamp_min(1e-12))) for width in WIDTHS)
    return signs @ (kernel / len(WIDTHS)) @ signs


def class_weights(source: Tensor, target: Tensor, classes: int) -> Tensor:
    """Compute target share over source share of each class, 0 where the source has none.

    :param source: labels of the source.
    :param target: labels of the target, here the network's own.
    :return: ``(classes,)``.
    """
    shares = [torch.bincount(y, minlength=classes) / len(y) for y in (source, target)]
    return torch.where(shares[0] > 0, shares[1] / shares[0].clamp_min(1e-12), 0.0)


def train(job: AdaptationJob) -> nn.Module:
    """Train on L_c + strength * MMD + 0.1 * L_c of the network's own target labels.

    The class weights and the target's labels are estimated anew before each epoch but the
    first, which has none.
    """
    network: Any = job.network()
    labels = job.pair.source[1]
    optimizer = torch.optim.Adam(network.parameters(), job.budget.learning_rate)
    of_class = torch.ones(job.classes)
    network.train()
    with job.where.casting():
        for epoch in epochs_of(job.budget.epochs, optimizer):
            if epoch:
                found = logits(network, job.pair.target).argmax(1).to(labels.device)
                of_class = class_weights(labels, found, job.classes)
            for x, y, z in pairs(job):
                codes = network.forward_features(torch.cat([x, z]))
                outputs = network.head(codes)
                loss = F.cross_entropy(outputs[: len(x)], y)
                weights = of_class.to(codes)[y]
                if weights.sum() > 0:
                    distance = weighted_mmd(codes[: len(x)], weights, codes[len(x) :])
                    loss = loss + job.strength * distance
                if epoch:
                    own = outputs[len(x) :]
                    loss = loss + PSEUDO_WEIGHT * F.cross_entropy(own, own.detach().argmax(1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network
