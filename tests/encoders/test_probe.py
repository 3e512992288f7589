"""The linear probe against a fit by hand."""

import pytest
import torch
from torch.nn import functional as F

from avalanche_cetl import linear_probe


def _clusters(classes, count=40, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = 2 * torch.randn(classes, dim, generator=generator)
    scale = torch.logspace(-2, 2, dim)
    return (means[labels] + torch.randn(count, dim, generator=generator)) * scale + 3, labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_probe_minimises_the_penalised_loss_on_standardised_features(classes):
    features, labels = _clusters(classes)
    strength = 0.1
    layer = linear_probe(features, labels, strength)
    assert layer.weight.shape == (classes, 6) and not layer.weight.requires_grad
    x = ((features - features.mean(0)) / features.std(0).clamp_min(
        0.1 * features.std(0).square().mean().sqrt())).double()  # fmt: skip
    rows = 1 if classes == 2 else classes
    w = torch.zeros(rows, 6, dtype=torch.double, requires_grad=True)
    b = torch.zeros(rows, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=500, line_search_fn="strong_wolfe")

    def logits():
        found = x @ w.T + b
        return F.pad(found, (1, 0)) if classes == 2 else found

    def loss():
        optimizer.zero_grad()
        total = F.cross_entropy(logits(), labels, reduction="sum") + w.square().sum() / 2 / strength
        total.backward()
        return total

    optimizer.step(loss)
    wanted = logits().softmax(1)
    torch.testing.assert_close(layer(features).softmax(1).double(), wanted, atol=2e-3, rtol=0)


def test_classes_without_a_row_are_never_chosen():
    features, labels = _clusters(2)
    layer = linear_probe(features, 2 * labels, num_classes=5)
    found = layer(features)
    assert found.shape == (40, 5) and torch.isfinite(found).all()
    assert set(found.argmax(1).tolist()) == {0, 2}
    assert found.softmax(1)[:, [1, 3, 4]].max() < 1e-9


def test_features_in_half_precision_are_read(dtype=torch.float16):
    features, labels = _clusters(3)
    half = linear_probe(features.to(dtype), labels)
    assert half.weight.dtype == torch.float32
    torch.testing.assert_close(
        half.weight, linear_probe(features, labels).weight, rtol=0.1, atol=0.01
    )


def test_a_feature_that_never_changes_counts_nothing():
    features, labels = _clusters(3)
    features[:, 2] = 7.0
    assert torch.isfinite(linear_probe(features, labels)(features)).all()
    assert torch.isfinite(linear_probe(torch.ones(6, 2), torch.arange(6) % 3).weight).all()


def test_features_and_labels_that_do_not_fit_are_refused():
    features, labels = _clusters(3)
    with pytest.raises(ValueError, match=r"features is empty, of shape \(0, \d+\)"):
        linear_probe(features[:0], labels[:0])
    with pytest.raises(ValueError, match=r"labels is empty, of shape \(0,\)"):
        linear_probe(features, torch.tensor([]))
    with pytest.raises(ValueError, match="two classes or more"):
        linear_probe(features, torch.zeros_like(labels))
    with pytest.raises(ValueError, match="two classes or more"):
        linear_probe(features, labels - 1)
    with pytest.raises(ValueError, match="num_classes=2"):
        linear_probe(features, labels, num_classes=2)
    with pytest.raises(ValueError, match=r"\(N, dim\)"):
        linear_probe(features[:5], labels)
    with pytest.raises(ValueError, match="integers"):
        linear_probe(features, labels.float())
    with pytest.raises(ValueError, match="strength=0"):
        linear_probe(features, labels, 0.0)
