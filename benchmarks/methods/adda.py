"""Adversarial discriminative domain adaptation, ADDA (Tzeng, Hoffman, Saenko, Darrell 2017)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods.job import AdaptationJob
from benchmarks.methods.pairs import epochs_of, pairs


def discriminator_loss(source: Tensor, target: Tensor) -> Tensor:
    """Compute the cross entropy of telling source (1) from target (0), mean of both, in nats.

    :param source: the discriminator's logits of source codes, ``(N,)``.
    :param target: of target codes, ``(M,)``.
    """
    own = F.binary_cross_entropy_with_logits(source, torch.ones_like(source))
    other = F.binary_cross_entropy_with_logits(target, torch.zeros_like(target))
    return (own + other) / 2


def mapping_loss(target: Tensor) -> Tensor:
    """Compute the target encoder's loss, with inverted labels: to be taken for the source."""
    return F.binary_cross_entropy_with_logits(target, torch.ones_like(target))


def train(job: AdaptationJob) -> nn.Module:
    """Train on the source for half of the epochs, then map the target's codes to the source's.

    The classifier stays as the source left it; the network ends with the target's encoder. The
    strength is the learning rate of the mapping over that of the source's training.
    """
    network = job.network()
    epochs = job.budget.epochs
    with job.where.casting():
        _train_on_source(job, network, epochs - epochs // 2)
        _map(job, network, epochs // 2)
    return network


def _train_on_source(job: AdaptationJob, network: nn.Module, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), job.budget.learning_rate)
    network.train()
    for _ in epochs_of(epochs, optimizer):
        for x, y, _ in pairs(job):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()


def _map(job: AdaptationJob, network: nn.Module, epochs: int) -> None:
    fixed = copy.deepcopy(network).eval().requires_grad_(False)
    width = network.head.in_features  # type: ignore[union-attr]
    critic = nn.Sequential(
        nn.Linear(int(width), 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    ).to(job.pair.target.device)
    classifier = {id(p) for p in network.head.parameters()}  # type: ignore[union-attr]
    encoder = [p for p in network.parameters() if id(p) not in classifier]
    rate = job.budget.learning_rate * job.strength
    betas = (0.5, 0.999)
    optimizers = [torch.optim.Adam(p, rate, betas) for p in (list(critic.parameters()), encoder)]
    for _ in epochs_of(epochs, *optimizers):
        for x, _, z in pairs(job):
            with torch.no_grad():
                own = fixed.forward_features(x)  # type: ignore[operator]
            other = network.forward_features(z)  # type: ignore[operator]
            optimizers[0].zero_grad()
            discriminator_loss(critic(own)[:, 0], critic(other.detach())[:, 0]).backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            mapping_loss(critic(other)[:, 0]).backward()
            optimizers[1].step()
