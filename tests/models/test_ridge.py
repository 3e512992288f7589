"""RidgeHead against ridge regressions of all rows at once."""

import copy
import io
import pickle

import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from avalanche_cetl.common.labels import ABSENT
from avalanche_cetl.models import RidgeHead
from avalanche_cetl.models.ridge import SCALE

DIM, CLASSES = 5, 4


@pytest.fixture
def rows():
    """Rows of four classes whose features have other units and means, in float64."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % CLASSES
    centres = torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, DIM, generator=generator, dtype=torch.float64)
    return (centres[labels] + noise) * torch.tensor([1.0, 10, 0.1, 1, 1]) + 3, labels


def head_of(features, labels, **settings):
    head = RidgeHead(features.shape[1], **settings)
    head.update(features, labels)
    return head


def joint(features, labels, penalty):
    """Least squares of all rows about their means, with the penalty as further rows."""
    goal = F.one_hot(labels).double()
    mean, share = features.mean(0), goal.mean(0)
    extra = penalty**0.5 * torch.eye(features.shape[1], dtype=torch.float64)
    stacked = torch.cat([features - mean, extra])
    wanted = torch.cat([goal - share, torch.zeros(len(extra), goal.shape[1])])
    weight = torch.linalg.lstsq(stacked, wanted).solution
    return lambda x: SCALE * ((x - mean) @ weight + share)


@pytest.mark.parametrize("penalty", [1e-6, 0.3, 50.0])
def test_the_head_is_the_joint_ridge_regression(rows, penalty):
    features, labels = rows
    head = head_of(features, labels, penalty=penalty)
    torch.testing.assert_close(head(features), joint(features, labels, penalty)(features))
    peer = Ridge(alpha=penalty).fit(features.numpy(), F.one_hot(labels).numpy())
    torch.testing.assert_close(head(features), SCALE * torch.tensor(peer.predict(features.numpy())))


def test_the_default_penalty_is_the_total_variance_of_the_features(rows):
    features, labels = rows
    variance = float(features.var(0, correction=0).sum())
    torch.testing.assert_close(
        head_of(features, labels)(features), joint(features, labels, variance)(features)
    )


def test_the_default_follows_the_unit_of_the_features_and_not_the_number_of_rows(rows):
    features, labels = rows
    first = head_of(features, labels)(features)
    torch.testing.assert_close(head_of(1e3 * features, labels)(1e3 * features), first)
    half = joint(features, labels, float(features.var(0, correction=0).sum()) / 2)(features)
    twice = head_of(features.repeat(2, 1), labels.repeat(2))(features)
    torch.testing.assert_close(twice, half)


@pytest.mark.parametrize("settings", [{}, {"projection": 7, "seed": 3}])
@pytest.mark.parametrize("chunk", [1, 7, 60])
def test_any_order_and_any_mini_batches_give_the_same_head(rows, settings, chunk):
    features, labels = rows
    whole = head_of(features, labels, **settings)(features)
    for order in (labels.argsort(), labels.argsort(descending=True), torch.randperm(60)):
        head = RidgeHead(DIM, **settings)
        for part in order.split(chunk):
            head.update(features[part], labels[part])
        torch.testing.assert_close(head(features), whole, rtol=0, atol=1e-9)


def test_a_projection_is_a_ridge_regression_of_random_rectified_features(rows):
    features, labels = rows
    head = head_of(features, labels, penalty=2.0, projection=9, seed=1)
    hidden = (features @ head.projection.double().T).relu()
    torch.testing.assert_close(head(features), joint(hidden, labels, 2.0)(hidden))
    assert torch.equal(head.projection, RidgeHead(DIM, projection=9, seed=1).projection)
    assert not torch.equal(head.projection, RidgeHead(DIM, projection=9, seed=2).projection)


def test_rows_without_a_label_change_nothing(rows):
    features, labels = rows
    some = labels.masked_fill(torch.arange(60) % 3 == 0, -1)
    known = some >= 0
    head = head_of(features, some)
    assert torch.equal(head(features), head_of(features[known], labels[known])(features))
    before = head.gram.clone()
    head.update(features, torch.full((60,), -1))
    head.update(features[:0], labels[:0])
    assert torch.equal(head.gram, before)
    assert head.rows_per_class.tolist() == torch.bincount(labels[known]).tolist()


def test_new_classes_make_it_grow_and_absent_ones_never_win(rows):
    features, labels = rows
    head = RidgeHead(DIM, 2)
    assert torch.equal(head(features), torch.full((60, 2), ABSENT, dtype=torch.float64))
    head.update(features[labels == 3], labels[labels == 3])
    assert head.num_classes == 4 and (head(features)[:, :3] == ABSENT).all()
    head.update(features[labels != 3], labels[labels != 3])
    torch.testing.assert_close(head(features), head_of(features, labels)(features))
    head.grow(6)
    head.grow(3)
    assert (head(features)[:, 4:] == ABSENT).all() and head(features).shape == (60, 6)
    torch.testing.assert_close(head(features)[:, :4].sum(1), torch.full((60,), SCALE).double())


def test_one_row_and_features_that_do_not_vary_have_a_solution():
    head = head_of(torch.full((1, 3), 1e4), torch.tensor([1]))
    assert head(torch.full((2, 3), 1e4)).argmax(1).tolist() == [1, 1]
    still = head_of(torch.zeros(4, 3), torch.tensor([0, 0, 0, 1]), penalty=None)
    assert torch.isfinite(still(torch.zeros(1, 3))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_every_type_are_read_and_sums_stay_in_float64(rows, dtype):
    features, labels = rows[0].to(dtype), rows[1]
    head = head_of(features, labels).half().float().to(torch.bfloat16)
    assert head.gram.dtype == head.products.dtype == torch.float64
    assert torch.equal(head.gram, head_of(features.double(), labels).gram)
    assert head(features).dtype == (dtype if dtype is torch.float64 else torch.float32)


@pytest.mark.parametrize("settings", [{}, {"projection": 7}])
def test_states_copies_pickles_and_plain_layers_are_the_same_head(rows, settings):
    features, labels = rows
    head = head_of(features, labels, **settings)
    wanted = head(features)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    loaded = head_of(features[:3], labels[:3], **settings | {"seed": 9})
    loaded(features)  # it has been solved for other sums
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other(features), wanted)
        other.update(features[:9], labels[:9])
        assert not torch.equal(other(features), wanted)
    assert torch.equal(head(features), wanted)
    layers = head.classifier()
    torch.testing.assert_close(layers(features.float()).double(), wanted, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in layers.parameters())
    assert not list(head.parameters())


def test_it_is_solved_again_when_its_sums_change_in_place(rows):
    features, labels = rows
    head, other = head_of(features, labels), head_of(features, labels.flip(0))
    first = head(features)
    assert head(features) is not first and torch.equal(head(features), first)
    with torch.no_grad():
        head.products.copy_(other.products)
    assert torch.equal(head(features), other(features))


def test_it_learns_in_inference_mode(rows):
    features, labels = rows
    head = RidgeHead(DIM)
    with torch.inference_mode():
        head.update(features, labels)
        assert torch.equal(head(features), head_of(features, labels)(features))
    head.update(features, labels)
    assert head.rows_per_class.sum() == 120


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"in_features": 0}, "in_features=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"projection": 0}, "projection=0"),
        ({"penalty": 0.0}, "penalty=0.0"),
        ({"penalty": float("nan")}, "penalty=nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        RidgeHead(**{"in_features": 2, **settings})


@pytest.mark.parametrize(
    ("features", "labels", "match"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"\(2, 4\); this head reads \(N, 5\)"),
        (torch.zeros(2, 5), torch.tensor([0]), r"labels are \(1,\)"),
        (torch.zeros(2, 5), torch.tensor([0.0, 1.0]), "torch.float32"),
        (torch.full((2, 5), torch.inf), torch.tensor([0, 7]), "not finite"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_the_sums(rows, features, labels, match):
    head = head_of(*rows)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(ValueError, match=match):
        head.update(features, labels)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_a_head_is_solved_once_for_its_sums_wherever_it_is_moved(monkeypatch):
    torch.manual_seed(0)
    head, solved = RidgeHead(4, 3, projection=8), []
    own = RidgeHead._solve
    monkeypatch.setattr(RidgeHead, "_solve", lambda self: solved.append(1) or own(self))
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    head.update(x, y)
    for _ in range(3):
        head.to("cpu").float()(x)
    assert len(solved) == 1
    head.update(x, y)
    head(x)
    state = head.state_dict()
    other = RidgeHead(4, 3, projection=8)
    other.load_state_dict(state)
    torch.testing.assert_close(other(x), head(x))
    assert len(solved) == 3


@pytest.mark.parametrize("projection", [None, 8])
def test_autocast_does_not_round_a_heads_logits(projection):
    torch.manual_seed(0)
    head = RidgeHead(4, 3, projection=projection)
    x = torch.randn(12, 4)
    head.update(x, torch.arange(12) % 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head(x))
