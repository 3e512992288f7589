"""Model selection without target labels: scores of a network's outputs alone.

Each is a function of logits ``(N, K)`` of target images, higher is better, in nats. As metrics
they read the outputs of an evaluation stream and nothing else; a label never reaches them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from avalanche.evaluation.metric_definitions import GenericPluginMetric, Metric, PluginMetric
from torch import Tensor


def negative_entropy(logits: Tensor) -> Tensor:
    """Minus the mean entropy of the predictions: how sure the network is, right or wrong.

    ``1/N sum_n sum_k p_nk log p_nk`` with ``p = softmax(logits)``; in [-log K, 0]
    (Grandvalet and Bengio 2004).

    :param logits: ``(N, K)``.
    :return: a scalar.

    >>> round(float(negative_entropy(torch.zeros(3, 2))), 4)
    -0.6931
    """
    return -_entropy(logits.softmax(1)).mean()


def information_maximization(logits: Tensor) -> Tensor:
    """Sure of each image, and of all classes in turn: the mutual information of both.

    ``H(mean_n p_n) - mean_n H(p_n)``; in [0, log K] (Krause, Perona and Gomes 2010). Unlike
    the entropy alone it sees a network that says the same of every image.

    :param logits: ``(N, K)``.
    :return: a scalar.
    """
    p = logits.softmax(1)
    return _entropy(p.mean(0, keepdim=True)).squeeze(0) - _entropy(p).mean()


def soft_neighborhood_density(
    logits: Tensor, temperature: float = 0.05, chunk_rows: int = 1024
) -> Tensor:
    """How many neighbours a prediction has among the others (Saito et al. 2021).

    Cosine similarities of the softmax outputs of all pairs, softmax over the others of
    ``similarity / temperature``, and the mean over images of that distribution's entropy; in
    [0, log(N - 1)], so it compares networks on the same images only.

    :param logits: ``(N, K)``, N >= 2.
    :param temperature: > 0; the paper's is 0.05.
    :param chunk_rows: images compared with all others at a time; changes memory, not the value.
    :return: a scalar.
    :raises ValueError: for fewer than two images, or a temperature that is not positive.
    """
    if len(logits) < 2:
        raise ValueError(f"{len(logits)} image has no neighbours; at least two are needed.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} has to be > 0.")
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
    """A score of all outputs since the last reset."""

    def __init__(self, score: Callable[[Tensor], Tensor]):
        self._score = score
        self._parts: list[Tensor] = []

    def update(self, logits: Tensor) -> None:
        """Take in a mini-batch."""
        self._parts.append(logits.detach().float().cpu())

    def result(self) -> float:
        """Give the score; not a number where there are too few images."""
        images = sum(map(len, self._parts))
        return float(self._score(torch.cat(self._parts))) if images > 1 else float("nan")

    def reset(self) -> None:
        """Forget the outputs."""
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
        """Read the outputs of an evaluation mini-batch, never its labels."""
        self._metric.update(strategy.mb_output)

    def __str__(self) -> str:
        return f"{self.name}_Exp"


def validator_metrics() -> list[PluginMetric]:
    """Give all scores as metrics for an ``EvaluationPlugin``; they work with any strategy.

    They are emitted per experience, ``NegativeEntropy_Exp/eval_phase/test_stream/...``.
    """
    return [UnlabelledScore(name) for name in SCORES]
