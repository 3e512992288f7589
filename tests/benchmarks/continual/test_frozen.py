import pytest
import torch
from avalanche.models import FeCAMClassifier
from avalanche.models.fecam import compute_covariance, compute_means

from benchmarks.continual import frozen


@pytest.fixture
def data(monkeypatch):
    """Features of six classes that are easily told apart, two in an experience."""
    for name, value in {"DIM": 8, "CLASSES": 6, "STEP": 2, "MEMORY": 12}.items():
        monkeypatch.setattr(frozen, name, value)
    torch.manual_seed(0)
    centres, labels = 3 * torch.randn(6, 8), torch.arange(60) % 6
    return tuple((centres[labels] + torch.randn(60, 8), labels) for _ in range(2))


def test_the_order_of_classes_is_the_seeds_and_rows_keep_their_class(data):
    (_, first), (_, second) = frozen.renumbered(data, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, frozen.renumbered(data, 4)[0][1])
    assert len({(int(a), int(b)) for a, b in zip(data[0][1], first, strict=True)}) == 6
    classes = [set(one.classes_in_this_experience) for one in frozen.stream(data)]
    assert classes == [{0, 1}, {2, 3}, {4, 5}]


def test_the_stream_ends_where_the_joint_ridge_regression_does_in_any_order(data):
    wanted = frozen.joint_ridge(data)
    assert wanted > 90
    for seed in (0, 1):
        assert frozen.ridge(frozen.renumbered(data, seed)) == wanted


def test_rivals_learn_on_the_same_features(data):
    assert frozen.ncm(data) > 80
    assert frozen.slda(data) > 80
    assert frozen.replay(data, 0.03, 0) > 30


def test_fecam_and_the_joint_probe_learn_too(data):
    data = tuple((x.abs(), y) for x, y in data)  # as behind a ReLU
    assert frozen.fecam(data) > 60
    assert frozen.probe(data) > 80


def test_the_shorter_way_to_fecams_distances_gives_them(data):
    classifier, (x, y) = FeCAMClassifier(), (data[0][0].abs(), data[0][1])
    moved = classifier.apply_transforms(x)
    classifier.update_class_means_dict(compute_means(moved, y))
    covariances = classifier.apply_cov_transforms(compute_covariance(moved, y))
    classifier.update_class_cov_dict(covariances)
    wanted = classifier(x)
    torch.testing.assert_close(frozen.fecam_logits(classifier)(x), wanted, rtol=1e-3, atol=1e-4)
