"""Class centroids: a classifier of S's features from S's own opinion of rows without labels."""

from __future__ import annotations

import logging

from torch import Tensor, nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)

#: The largest scale of the cosines: a largest probability of nearly 1.
MOST = 500.0
#: Agreement with the network's own classes below which there are no centroids. Where they helped it
#: was 0.84 and more, and 0.5 where S names hardly any image right (``benchmarks/suite``).
LEAST = 2 / 3
#: Halvings of the range in which the scale is looked for, on a logarithmic axis.
HALVINGS = 40


class Centroids(nn.Module):
    """Classifies features by the centroid that lies in the nearest direction.

    Logits are ``scale * cos(feature, centroid)``.

    :param centroids: ``(K, dim)``.
    :param scale: > 0.
    """

    centroids: Tensor

    def __init__(self, centroids: Tensor, scale: float):
        super().__init__()
        self.register_buffer("centroids", F.normalize(centroids, dim=1))
        self.scale = float(scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, K)`` of features ``(N, dim)``."""
        directions = F.normalize(features.to(self.centroids), dim=1)
        return self.scale * directions @ self.centroids.t()


def class_centroids(features: Tensor, logits: Tensor) -> Centroids | None:
    """Return the classifier that a frozen network's own logits make of its features.

    Images of one class lie together among the features even where the classifier, which has learnt
    another domain, cuts through them. The first centroids are means of the features' directions,
    weighted by the network's class probabilities; rows then go to the nearest one, and the
    centroids are the means of their rows: the self-labelling of SHOT (Liang, Hu and Feng 2020,
    arXiv 2002.08546, section 3.2), which labels once more with the second ones.

    The paper takes labels. Here the classifier is as sure as it deserves: the mean of its largest
    probabilities is the share of rows on which the network and it agree.

    :param features: ``(N, dim)``, N >= 1, of rows that need no label.
    :param logits: the network's, ``(N, K)``.
    :return: the classifier; None where the two agree on less than ``LEAST`` of the rows. Then the
        network's opinion is no class that lies together.
    """
    directions = F.normalize(features.float(), dim=1)
    first = logits.argmax(1)
    weights = logits.float().softmax(1)
    for _ in range(2):
        centroids = F.normalize(weights.t() @ directions, dim=1)
        cosines = directions @ centroids.t()
        weights = F.one_hot(cosines.argmax(1), logits.shape[1]).float()
    agreed = float((cosines.argmax(1) == first).float().mean())
    logger.info(
        "S's classifier and its class centroids agree on %.1f %% of %d target rows; %s.",
        100 * agreed, len(logits), "the centroids teach" if agreed >= LEAST else "S itself teaches",
    )  # fmt: skip
    if agreed < LEAST:
        return None
    low, high = 1.0, MOST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if float((middle * cosines).softmax(1).amax(1).mean()) < agreed:
            low = middle
        else:
            high = middle
    return Centroids(centroids, high)
