import math

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from hypothesis import given, settings
from hypothesis import strategies as st
from skada.metrics import PredictionEntropyScorer, SoftNeighborhoodDensity
from torch import nn

from avalanche_cetl import transfer_benchmark, validator_metrics
from avalanche_cetl.evaluation.validators import (
    SCORES,
    UnlabelledScore,
    information_maximization,
    negative_entropy,
    soft_neighborhood_density,
)


def probabilities(logits):
    rows = []
    for row in logits.tolist():
        sizes = [math.exp(v - max(row)) for v in row]
        rows.append([s / sum(sizes) for s in sizes])
    return rows


def entropy(p):
    return -sum(v * math.log(v) for v in p if v > 0)


def naive(name, logits):
    rows = probabilities(logits)
    if name == "NegativeEntropy":
        return -sum(map(entropy, rows)) / len(rows)
    if name == "InformationMaximization":
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return entropy(mean) - sum(map(entropy, rows)) / len(rows)
    total = 0.0
    for i, one in enumerate(rows):
        near = []
        for j, other in enumerate(rows):
            if i == j:
                continue
            dot = sum(a * b for a, b in zip(one, other, strict=True))
            size = math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
            near.append(math.exp(dot / size / 0.05))
        total += entropy([v / sum(near) for v in near])
    return total / len(rows)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 12), k=st.integers(2, 6), scale=st.floats(0, 30), seed=st.integers(0, 2**31)
)
@pytest.mark.parametrize("name", SCORES)
def test_scores_equal_the_naive_formula(name, n, k, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    assert float(SCORES[name](logits)) == pytest.approx(naive(name, logits), rel=1e-9, abs=1e-9)


class _Given:
    """A scikit-learn estimator whose answers are given."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def predict_proba(self, X, **_):
        return self.probabilities


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_scores_equal_those_of_skada(scale):
    """SKADA also averages the entropy over classes, and softens the place of an image itself."""
    torch.manual_seed(0)
    n, k = 30, 4
    logits = scale * torch.randn(n, k, dtype=torch.float64)
    X, y, domain = np.zeros((n, 1)), np.zeros(n), np.full(n, -1)  # negative: target
    given = _Given(logits.softmax(1).numpy())
    # Without predict_log_proba SKADA adds 1e-7 under the logarithm.
    theirs = PredictionEntropyScorer()._score(None, given, X, y, domain) * k
    assert float(negative_entropy(logits)) == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    theirs = SoftNeighborhoodDensity()._score(None, given, X, y, domain)
    assert float(soft_neighborhood_density(logits)) == pytest.approx(theirs, rel=1e-5)


def test_scores_have_their_ranges_and_preferences():
    unsure, sure = torch.zeros(8, 4), 50 * torch.eye(4).repeat(2, 1)
    same = 50 * torch.eye(4)[:1].expand(8, -1)
    assert float(negative_entropy(unsure)) == pytest.approx(-math.log(4))
    assert float(negative_entropy(sure)) == pytest.approx(0, abs=1e-6)
    assert float(information_maximization(sure)) == pytest.approx(math.log(4))
    assert float(information_maximization(same)) == pytest.approx(0, abs=1e-6)
    # One neighbour each, against seven.
    assert float(soft_neighborhood_density(sure)) == pytest.approx(0, abs=1e-5)
    assert float(soft_neighborhood_density(same)) == pytest.approx(math.log(7))


def test_neighbourhood_density_does_not_depend_on_chunks():
    logits = torch.randn(50, 5, dtype=torch.float64)
    one, other = (soft_neighborhood_density(logits, chunk_rows=rows) for rows in (7, 1024))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_metrics_of_any_strategy_read_no_label(digits):
    images, labels = digits(20)
    found = []
    for shown in (labels, labels.roll(7)):  # other labels, the same scores
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            criterion=nn.CrossEntropyLoss(),
            eval_mb_size=6,
            evaluator=EvaluationPlugin(*validator_metrics(), loggers=[]),
        )
        benchmark = transfer_benchmark(digits(20, seed=1), (images, shown))
        found.append(strategy.eval(benchmark.test_stream))
        logits = model(images).detach()
        for name, score in SCORES.items():
            (key,) = [key for key in found[-1] if key.startswith(f"{name}_Exp/eval_phase/test")]
            assert found[-1][key] == pytest.approx(float(score(logits)), rel=1e-5)
    assert found[0] == found[1]


def test_scores_of_too_few_images_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no neighbours"):
        soft_neighborhood_density(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="temperature"):
        soft_neighborhood_density(torch.zeros(4, 3), temperature=0)
    for rows in (0, -1):
        with pytest.raises(ValueError, match=f"chunk_rows={rows}"):
            soft_neighborhood_density(torch.zeros(4, 3), chunk_rows=rows)
    with pytest.raises(ValueError, match="NegativeEntropy"):
        UnlabelledScore("Accuracy")
