"""Class centroids against a plain loop, and on clusters that a classifier cuts through."""

import torch

from avalanche_cetl.encoders.centroids import class_centroids


def _clusters(count=60, classes=3, dim=5, noise=0.4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    means = torch.randn(classes, dim, generator=generator)
    return means[labels] + noise * torch.randn(count, dim, generator=generator), labels, means


def naive(features, logits):
    """Cosines with the centroids, row by row."""
    rows, classes = len(features), logits.shape[1]
    unit = [row / row.norm() for row in features]
    weights = logits.softmax(1)
    for _ in range(2):
        centroids = [sum(weights[i, k] * unit[i] for i in range(rows)) for k in range(classes)]
        centroids = [one / max(one.norm(), 1e-12) for one in centroids]
        cosines = torch.stack([torch.stack([row @ one for one in centroids]) for row in unit])
        weights = torch.zeros(rows, classes)
        for i in range(rows):
            weights[i, int(cosines[i].argmax())] = 1.0
    return cosines


def test_centroids_are_those_of_a_plain_loop_and_as_sure_as_they_agree_with_the_classifier():
    features, labels, means = _clusters()
    logits = features @ (means + torch.randn(3, 5, generator=torch.Generator().manual_seed(1))).t()
    found = class_centroids(features, logits)
    wanted = naive(features, logits)
    torch.testing.assert_close(found(features) / found.scale, wanted)
    agreed = (wanted.argmax(1) == logits.argmax(1)).float().mean()
    assert 0.5 < agreed < 1
    torch.testing.assert_close(found(features).softmax(1).amax(1).mean(), agreed)
    assert (wanted.argmax(1) == labels).sum() > (logits.argmax(1) == labels).sum()


def test_a_classifier_that_the_centroids_agree_with_makes_them_sure_and_finite():
    features, _, means = _clusters(noise=0.01)
    found = class_centroids(features, 50 * features @ means.t())
    assert found.scale <= 500
    assert found(features).softmax(1).amax(1).mean() > 0.99


def test_a_class_that_no_row_is_near_has_finite_logits():
    features, _, means = _clusters()
    logits = torch.cat([features @ means.t(), torch.full((60, 1), -1000.0)], 1)
    assert class_centroids(features, logits)(features).isfinite().all()


def test_there_are_none_where_they_hardly_agree_with_the_classifier():
    features, _, _ = _clusters()
    random = 9 * torch.randn(60, 3, generator=torch.Generator().manual_seed(2))
    assert (naive(features, random).argmax(1) == random.argmax(1)).float().mean() < 2 / 3
    assert class_centroids(features, random) is None
