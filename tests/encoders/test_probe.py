"""The linear probe against a fit by hand."""

import logging

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch.nn import functional as F

from avalanche_cetl import linear_probe
from avalanche_cetl.encoders import probe


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
    with pytest.raises(ValueError, match="integers"):
        linear_probe(features, labels > 0)
    with pytest.raises(ValueError, match="C=0"):
        linear_probe(features, labels, 0.0)


# ------------------------------------------------------------------ the choice of C


def _hard(per_class, noise, classes=4, dim=20, seed=0):
    """Classes that overlap the more the larger the noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(per_class * classes) % classes
    means = torch.randn(classes, dim, generator=generator)
    return means[labels] + noise * torch.randn(len(labels), dim, generator=generator), labels


def test_labels_that_were_held_out_are_likeliest_under_the_c_that_is_chosen():
    features, labels = _hard(12, 2.0)
    chosen = linear_probe(features, labels)
    assert chosen.C in probe.GRID[1:-1] and chosen.held_out.rows == 48
    x = ((features - features.mean(0)) / features.std(0)).double().numpy()
    likelihoods = {}
    for C in probe.GRID:
        model = LogisticRegression(C=C, max_iter=1000)
        parts = StratifiedKFold(5, shuffle=True, random_state=0)
        found = cross_val_predict(
            model, x, labels.numpy(), cv=parts, method="predict_log_proba",
            params={},  # scikit-learn 1.6 needs them where SKADA has turned metadata routing on
        )  # fmt: skip
        likelihoods[C] = found[range(48), labels.numpy()].mean()
    assert max(likelihoods, key=likelihoods.get) == chosen.C
    assert chosen.held_out.log_likelihood == pytest.approx(likelihoods[chosen.C], abs=1e-3)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.1, 0.99, 1.0), (20.0, 0.0, 0.6)])
def test_a_probe_is_as_sure_as_it_is_right(noise, least, most):
    features, labels = _hard(3, noise)
    made = linear_probe(features, labels)
    assert least <= made.held_out.accuracy <= most
    sure = made(_hard(50, noise)[0]).softmax(1).max(1).values.mean()
    assert (sure > 0.7) if noise < 1 else (sure < 0.7)


def test_where_nothing_can_be_held_out_c_is_one(caplog):
    with caplog.at_level(logging.INFO, probe.__name__):
        made = linear_probe(*_hard(1, 0.1))
    assert made.C == 1 and made.held_out is None and "C=1" in caplog.text
    features, labels = _hard(1, 0.1)
    features, labels = torch.cat([features, features[:2]]), torch.cat([labels, labels[:2]])
    assert linear_probe(features, labels).held_out.rows == 4  # of the classes that have two


def test_of_many_rows_some_are_tried_on():
    features, labels = _hard(300, 2.0, dim=5)
    made = linear_probe(features, labels)
    assert made.held_out.rows == probe.TRIED
    assert f"C={made.C:g}, accuracy={made.held_out.accuracy:.3f}" in repr(made)


def test_features_wider_than_their_rows_are_tried_on_in_the_space_of_the_rows():
    features, labels = _hard(4, 1.0, dim=12)
    wide = torch.cat([features, torch.zeros(16, 30)], 1)[:, torch.randperm(42)]
    narrow, found = linear_probe(features, labels), linear_probe(wide, labels)
    assert found.C == narrow.C
    assert found.held_out.log_likelihood == pytest.approx(narrow.held_out.log_likelihood, abs=1e-3)


def test_the_old_name_of_c_counts():
    features, labels = _hard(3, 1.0)
    with pytest.warns(FutureWarning, match="strength= is called C= here"):
        found = linear_probe(features, labels, strength=0.5)
    assert torch.equal(found.weight, linear_probe(features, labels, C=0.5).weight)
