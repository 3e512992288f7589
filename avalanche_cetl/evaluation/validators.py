"""Model selection without target labels: scores of a network's logits alone.

Each is a function of the logits ``(N, K)`` of target images, in nats; higher is better. As metrics
they read the logits of an evaluation stream and nothing else; a label never reaches them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.evaluation.metric_definitions import GenericPluginMetric, Metric, PluginMetric
from torch import Tensor


def negative_entropy(logits: Tensor) -> Tensor:
    """Return minus the mean entropy of the predictions; high for confident ones, right or wrong.

    ``1/N sum_n sum_k p_nk log p_nk`` with ``p = softmax(logits)``; in [-log K, 0]
    (Grandvalet and Bengio 2004).

    :param logits: ``(N, K)``.
    :return: a scalar.

    >>> round(float(negative_entropy(torch.zeros(3, 2))), 4)
    -0.6931
    """
    return -_entropy(logits.softmax(1)).mean()


def information_maximization(logits: Tensor) -> Tensor:
    """Return the mutual information between images and predicted classes.

    ``H(mean_n p_n) - mean_n H(p_n)`` with ``p = softmax(logits)`` and the entropy H; in [0, log K]
    (Krause, Perona and Gomes 2010). High when each image has a confident prediction and all
    classes are predicted equally often. Unlike the entropy alone it is low for a network that
    predicts the same class for every image.

    :param logits: ``(N, K)``.
    :return: a scalar.
    """
    p = logits.softmax(1)
    return _entropy(p.mean(0, keepdim=True)).squeeze(0) - _entropy(p).mean()


def soft_neighborhood_density(
    logits: Tensor, temperature: float = 0.05, chunk_rows: int = 1024
) -> Tensor:
    """Return how many neighbours a prediction has among the others (Saito et al. 2021).

    With the cosine similarity ``s_ij`` of the softmax outputs of images i and j, the distribution
    ``q_i = softmax over j != i of s_ij / temperature``, and its entropy H, the score is
    ``mean_i H(q_i)``. It is in [0, log(N - 1)], so it compares networks on the same images only.

    :param logits: ``(N, K)``, N >= 2.
    :param temperature: > 0; the paper's is 0.05.
    :param chunk_rows: images compared with all others at a time, >= 1; changes memory, not the
        value.
    :return: a scalar.
    :raises ValueError: for fewer than two images, or a temperature or a number of rows that is not
        positive.
    """
    if len(logits) < 2:
        raise ValueError(f"{len(logits)} image has no neighbours; at least two are needed.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} has to be > 0.")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows={chunk_rows} has to be >= 1.")
    p = torch.nn.functional.normalize(logits.softmax(1), dim=1)
    total = p.new_zeros(())
    for start in range(0, len(p), chunk_rows):
        near = p[start : start + chunk_rows] @ p.T / temperature
        own = torch.arange(len(near), device=p.device)
        near[own, start + own] = -torch.inf
        total = total + _entropy(near.softmax(1)).sum()
    return total / len(p)


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "NegativeEntropy": negative_entropy,
    "InformationMaximization": information_maximization,
    "SoftNeighborhoodDensity": soft_neighborhood_density,
}


class _Outputs(Metric[float]):
    """A score of all logits since the last reset."""

    def __init__(self, score: Callable[[Tensor], Tensor]):
        self._score = score
        self._parts: list[Tensor] = []

    def update(self, logits: Tensor) -> None:
        """Add the logits of a mini-batch."""
        self._parts.append(logits.detach().float().cpu())

    def result(self) -> float:
        """Return the score; NaN for fewer than two images."""
        images = sum(map(len, self._parts))
        return float(self._score(torch.cat(self._parts))) if images > 1 else float("nan")

    def reset(self) -> None:
        """Remove all logits."""
        self._parts = []


class UnlabelledScore(GenericPluginMetric[float, _Outputs]):
    """One of the scores, over every experience of an evaluation stream.

    :param name: ``"NegativeEntropy"``, ``"InformationMaximization"`` or
        ``"SoftNeighborhoodDensity"``.
    :raises ValueError: for another name.
    """

    def __init__(self, name: str):
        if name not in SCORES:
            raise ValueError(f"{name!r} is no score. Allowed: {sorted(SCORES)}.")
        super().__init__(_Outputs(SCORES[name]), "experience", "experience", "eval")
        self.name = name

    def update(self, strategy: Any) -> None:
        """Read the logits of an evaluation mini-batch, never its labels."""
        self._metric.update(strategy.mb_output)

    def __str__(self) -> str:
        return f"{self.name}_Exp"


def validator_metrics() -> list[PluginMetric]:
    """Return all scores as metrics for an ``EvaluationPlugin``; they work with any strategy.

    They are emitted per experience, ``NegativeEntropy_Exp/eval_phase/test_stream/...``.
    """
    return [UnlabelledScore(name) for name in SCORES]
