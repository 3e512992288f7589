"""AdaMatch without target labels (Berthelot et al., ICLR 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods.job import AdaptationJob
from benchmarks.methods.pairs import epochs_of, pairs

#: Of the mean confidence on the source's weak views: what a target image needs to count.
THRESHOLD = 0.9


def pseudo_labels(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the target's aligned class probabilities, and which of its images count.

    The probabilities are scaled class by class by what the mean over the source is to the mean over
    the target, and to a sum of one. An image counts where its largest is at least ``THRESHOLD`` of
    the mean of the source's largest.

    :param source: logits of the source's weak views, ``(N, K)``.
    :param target: logits of the target's weak views, ``(M, K)``.
    :return: ``(M, K)``, and 0 or 1 for each image, ``(M,)``; neither has a gradient.
    """
    known, guessed = source.detach().softmax(1), target.detach().softmax(1)
    aligned = guessed * (known.mean(0) / guessed.mean(0).clamp_min(1e-8))
    aligned = aligned / aligned.sum(1, keepdim=True)
    least = THRESHOLD * known.amax(1).mean()
    return aligned, (aligned.amax(1) >= least).to(aligned)


def train(job: AdaptationJob) -> nn.Module:
    """Train on weak and strong views of both domains, without a strength to choose.

    The loss is L_c of the source's weak views, L_c of its strong ones, and ``mu`` times the cross
    entropy of the target's strong views against :func:`pseudo_labels`; ``mu`` rises from 0 to 1 by
    half a cosine over the first half of the steps. The paper also mixes logits from passes with and
    without the target's images at random; they differ by BatchNorm alone, which CI-CNN has not.
    """
    network: Any = job.network()
    optimizer = torch.optim.Adam(network.parameters(), job.budget.learning_rate)
    longer = max(len(job.pair.source[0]), len(job.pair.target))
    steps, done = job.budget.epochs * math.ceil((longer - 1) / job.budget.batch), 0
    network.train()
    with job.where.casting():
        for _ in epochs_of(job.budget.epochs, optimizer):
            for x, y, z in pairs(job, job.weak):
                images = torch.cat([x, z, job.augment(x), job.augment(z)])
                sizes = [len(x), len(z), len(x), len(z)]
                weak, other, strong, seen = network(images).split(sizes)
                wanted, counts = pseudo_labels(weak, other)
                of_target = (F.cross_entropy(seen, wanted, reduction="none") * counts).mean()
                mu = (1 - math.cos(min(math.pi, 2 * math.pi * done / steps))) / 2
                loss = F.cross_entropy(weak, y) + F.cross_entropy(strong, y) + mu * of_target
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
    return network
