"""Weighted maximum mean discrepancy, WDA (Yan et al., CVPR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.training import Augment, Images, epochs_of, pairs, predictions

#: Widths of the Gaussian kernels, as multiples of the mean squared distance.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def weighted_mmd(source: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the kernel means, with weighted source samples.

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
    """Target share over source share of each class, ``(classes,)``; 0 where the source has none.

    :param source: labels of the source.
    :param target: labels of the target, here the network's own.
    """
    shares = [torch.bincount(y, minlength=classes) / len(y) for y in (source, target)]
    return torch.where(shares[0] > 0, shares[1] / shares[0].clamp_min(1e-12), 0.0)


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
    pseudo_weight: float = 0.1,
) -> None:
    """Train on L_c + weight * MMD + pseudo_weight * L_c of the network's own target labels.

    The class weights and the target's labels are estimated anew before each epoch but the
    first, which has none.
    """
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    classes = int(source[1].max()) + 1
    of_class = torch.ones(classes)
    network.train()
    for epoch in epochs_of(epochs, optimizer):
        if epoch:
            found = predictions(network, target).to(source[1].device)
            of_class = class_weights(source[1], found, classes)
        for x, y, z in pairs(source, target, batch, augment):
            codes = network.forward_features(torch.cat([x, z]))  # type: ignore[operator]
            logits = network.head(codes)  # type: ignore[operator]
            loss = F.cross_entropy(logits[: len(x)], y)
            weights = of_class.to(codes)[y]
            if weights.sum() > 0:
                loss = loss + weight * weighted_mmd(codes[: len(x)], weights, codes[len(x) :])
            if epoch:
                own = logits[len(x) :]
                loss = loss + pseudo_weight * F.cross_entropy(own, own.detach().argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
