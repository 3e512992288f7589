"""Adversarial discriminative domain adaptation, ADDA (Tzeng, Hoffman, Saenko, Darrell 2017)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.training import Augment, Images, epochs_of, pairs


def discriminator_loss(source: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of telling source (1) from target (0), mean over both batches, in nats.

    :param source: the discriminator's logits of source codes, ``(N,)``.
    :param target: of target codes, ``(M,)``.
    """
    own = F.binary_cross_entropy_with_logits(source, torch.ones_like(source))
    other = F.binary_cross_entropy_with_logits(target, torch.zeros_like(target))
    return (own + other) / 2


def mapping_loss(target: Tensor) -> Tensor:
    """The target encoder's loss, with inverted labels: to be taken for the source."""
    return F.binary_cross_entropy_with_logits(target, torch.ones_like(target))


def train(
    network: nn.Module,
    source: Images,
    target: Tensor,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    augment: Augment,
    weight: float = 0.1,
) -> None:
    """Train on the source for half of the epochs, then map the target's codes to the source's.

    The classifier stays as the source left it; ``network`` ends with the target's encoder.

    :param weight: learning rate of the mapping over that of the source's training.
    """
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    network.train()
    first = epochs - epochs // 2
    for _ in epochs_of(first, optimizer):
        for x, y, _ in pairs(source, target, batch, augment):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    fixed = copy.deepcopy(network).eval().requires_grad_(False)
    width = network.head.in_features  # type: ignore[union-attr]
    critic = nn.Sequential(
        nn.Linear(int(width), 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    ).to(source[0].device)
    encoder = [p for name, p in network.named_parameters() if not name.startswith("head.")]
    rate = learning_rate * weight
    betas = (0.5, 0.999)
    optimizers = [torch.optim.Adam(p, rate, betas) for p in (list(critic.parameters()), encoder)]
    for _ in epochs_of(epochs - first, *optimizers):
        for x, _, z in pairs(source, target, batch, augment):
            with torch.no_grad():
                own = fixed.forward_features(x)  # type: ignore[operator]
            other = network.forward_features(z)  # type: ignore[operator]
            optimizers[0].zero_grad()
            discriminator_loss(critic(own)[:, 0], critic(other.detach())[:, 0]).backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            mapping_loss(critic(other)[:, 0]).backward()
            optimizers[1].step()
