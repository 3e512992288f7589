import math

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training.supervised import Naive
from coupled_runs import SHAPE
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_runs import coupled, student, trained, unread
from networks import Of
from torch import nn

from avalanche_cetl import (
    CETLPlugin,
    ModuleEncoder,
    PrecomputedEncoder,
    SoftTargets,
    TimmEncoder,
    adaptation_benchmark,
    linear_probe,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.encoders.centroids import Centroids, class_centroids
from avalanche_cetl.plugins.soft_targets import soft_target_loss


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 6),
    k=st.integers(2, 5),
    temperature=st.floats(0.5, 20),
    seed=st.integers(0, 2**31),
)
def test_soft_targets_equal_the_naive_formula(n, k, temperature, seed):
    g = torch.Generator().manual_seed(seed)
    logits, goal = (3 * torch.randn(n, k, generator=g, dtype=torch.float64) for _ in range(2))

    def probabilities(row):
        sizes = [math.exp(float(v) / temperature) for v in row]
        return [s / sum(sizes) for s in sizes]

    total = 0.0
    for mine, theirs in zip(logits, goal, strict=True):
        for q, p in zip(probabilities(mine), probabilities(theirs), strict=True):
            total += p * math.log(p / q)
    wanted = temperature**2 * total / n
    found = float(soft_target_loss(logits, goal, temperature))
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-10)


def _seeded():
    return torch.Generator().manual_seed(3)


def test_the_gradient_keeps_its_size_as_the_temperature_changes():
    torch.manual_seed(0)
    logits = torch.randn(8, 5, requires_grad=True)
    sizes = []
    for temperature in (20.0, 40.0):
        loss = soft_target_loss(logits, torch.randn(8, 5, generator=_seeded()), temperature)
        sizes.append(float(torch.autograd.grad(loss, logits)[0].norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_soft_targets_teach_without_labels(teacher, few, digits):
    """Six labels alone are few; S's logits of all images are many."""
    x, _ = digits(60, seed=5)

    def accuracy(*plugins):
        model = coupled(teacher)
        settings = {"stage_epochs": (1, 1, 1), "lr_factors": (1.0, 1.0), "fixed_goal": False}
        trained(model, few, *plugins, train_epochs=2, lr=5e-3, **settings)
        model.eval()
        with torch.no_grad():
            return float((model(x).argmax(1) == teacher.logits(x).argmax(1)).float().mean())

    assert accuracy(SoftTargets(rows="target")) > accuracy()


@pytest.mark.parametrize(
    ("anneal", "rounds", "wanted"),
    [(True, 3, [1, 0.5, 0]), (True, 1, [1]), (False, 3, [1, 1, 1])],
)
def test_an_annealed_weight_falls_to_zero_over_the_rounds(teacher, few, anneal, rounds, wanted):
    found = []

    class Look(CETLPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            found.append(plugin.strength(strategy))

    plugin = SoftTargets(anneal=anneal)
    trained(coupled(teacher), few, Look(), plugin, train_epochs=rounds)
    assert found == wanted


def test_the_last_round_of_an_annealed_loss_is_trained_without_it(teacher, few):
    class Stop(CETLPlugin):
        def after_round(self, strategy, *args, **kwargs):
            plain.weight = 0.0

    annealed, plain = SoftTargets(anneal=True), SoftTargets()
    first = trained(coupled(teacher), few, annealed)
    second = trained(coupled(teacher), few, plain, Stop())
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_head_classifies_the_features_of_a_source_with_other_classes(few):
    torch.manual_seed(0)
    source = ModuleEncoder(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7)),
        input_shape=SHAPE,
    )
    head = nn.Linear(9, 3)
    s = trained(coupled(source), few, SoftTargets(head=head))
    assert s.round_losses["L_soft"] > 0 and head.weight.grad is None
    with pytest.raises(ValueError, match="7 classes and the target network 3; give head="):
        trained(coupled(source), few, SoftTargets())


@pytest.mark.parametrize("stored", [True, False])
def test_a_probe_is_fitted_on_the_labelled_target_rows(few, digits, tmp_path, stored):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 7))
    source = ModuleEncoder(layers, input_shape=SHAPE)
    data = with_source_features(few, source, tmp_path, dtype="float32") if stored else few
    plugin = SoftTargets(temperature=2.0, rows="target", head="probe")
    s = trained(coupled(source), data, plugin)
    assert s.round_losses["L_soft"] > 0
    images, labels = map(
        torch.stack,
        zip(
            *[(x, torch.tensor(y)) for x, y, *_ in few.labelled_stream[0].dataset.eval()],
            strict=True,
        ),
    )
    wanted = linear_probe(source(images), labels, num_classes=3)
    x, _ = digits(9, seed=8)
    torch.testing.assert_close(
        plugin.classifier(source(x)), wanted(source(x)), atol=1e-3, rtol=1e-3
    )


def test_an_experience_without_labelled_target_rows_has_no_probe(teacher, digits):
    data = adaptation_benchmark(digits(30), digits(30, shift=0.1), digits(30, seed=2))
    plugin = SoftTargets(rows="target", head="probe")
    assert "L_soft" not in trained(coupled(teacher), data, plugin).round_losses
    assert plugin.classifier is None
    alone = coupled(None)
    few = transfer_benchmark(digits(30), digits(30))
    plugin = SoftTargets(head="probe")
    assert "L_soft" not in trained(alone, few, plugin).round_losses


def test_a_probe_has_the_classes_of_the_labelled_target_rows_alone(teacher, digits):
    """Target labels of some classes only: the source rows have more, so there is no probe."""
    x, y = digits(60)
    partly = torch.where(y < 2, y, -1)
    both = adaptation_benchmark((x, y), (x, partly), digits(30, seed=1), labels_per_class=5)
    assert {0, 1} == {int(t) for t in both.labelled_stream[0].dataset.targets}
    plugin = SoftTargets(rows="target", head="probe")
    assert "L_soft" not in trained(coupled(teacher), both, plugin).round_losses
    # Experiences with classes of their own: T2's logits of the others are left alone.
    few = transfer_benchmark((x[y < 2], y[y < 2]), (x[y < 2], y[y < 2]))
    s = trained(coupled(teacher), few, plugin)
    assert plugin.classifier.out_features == 2 and s.round_losses["L_soft"] > 0
    rows = Batch([x[:4], *unread(4)])
    rows.logits = torch.randn(4, 3, requires_grad=True)
    loss = plugin.loss(s, rows)
    loss.backward()
    assert (rows.logits.grad[:, 2] == 0).all() and rows.logits.grad[:, :2].abs().sum() > 0
    wanted = soft_target_loss(rows.logits[:, :2], plugin.classifier(teacher(x[:4])), 4.0)
    torch.testing.assert_close(loss, wanted)


class Knows(ModuleEncoder):
    """An S with a classifier that is right on as many of every four rows as it is told."""

    def __init__(self, right):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), input_shape=SHAPE)
        self.right, self.rows = right, 0

    def cheapest_logits(self, x, features=None):
        assert len(x) == len(features)
        labels = torch.arange(len(features)) % 3
        wrong = torch.arange(len(features)) % 4 >= self.right
        return 9.0 * nn.functional.one_hot((labels + wrong) % 3, 3)


@pytest.mark.parametrize(("right", "own"), [(4, True), (0, False)])
def test_s_teaches_itself_where_it_is_right_as_often_as_a_probe(digits, caplog, right, own):
    x, _ = digits(24)
    data = transfer_benchmark((x, torch.arange(24) % 3), digits(9))
    plugin = SoftTargets(rows="target", head="best")
    with caplog.at_level("INFO", "avalanche_cetl.plugins.soft_targets"):
        s = trained(coupled(Knows(right)), data, plugin)
    assert s.round_losses["L_soft"] > 0
    assert (plugin.classifier is None) == own
    assert f"right on {25 * right:.1f} % of 24 labelled rows" in caplog.text


def test_an_s_of_other_classes_leaves_the_word_to_the_probe(few):
    source = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), input_shape=SHAPE)
    plugin = SoftTargets(rows="target", head="best")
    assert trained(coupled(source), few, plugin).round_losses["L_soft"] > 0
    assert plugin.classifier is not None


@pytest.mark.parametrize("stored", [False, True])
def test_centroids_are_of_all_target_rows_and_need_no_label(teacher, digits, tmp_path, stored):
    x, _ = digits(24)
    data = adaptation_benchmark(None, (x, torch.full((24,), -1)), digits(9))
    if stored:
        data = with_source_features(data, teacher, tmp_path, streams=["train"], dtype="float32")
    plugin = SoftTargets(rows="target", head="centroids")
    s = trained(coupled(teacher), data, plugin)
    assert s.round_losses["L_soft"] > 0
    features = teacher(x)
    wanted = class_centroids(features, teacher.cheapest_logits(x, features))
    torch.testing.assert_close(plugin.classifier(features), wanted(features))


def test_s_itself_teaches_where_its_classes_do_not_lie_together(few):
    class Guesses(ModuleEncoder):
        def cheapest_logits(self, x, features=None):
            return 9 * torch.randn(len(x), 3, generator=torch.Generator().manual_seed(len(x)))

    source = Guesses(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), input_shape=SHAPE)
    plugin = SoftTargets(rows="target", head="centroids")
    assert trained(coupled(source), few, plugin).round_losses["L_soft"] > 0
    assert plugin.classifier is None


def test_centroids_need_an_s_of_t2s_classes(few):
    source = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), input_shape=SHAPE)
    with pytest.raises(ValueError, match="has 2 classes and the target network 3"):
        trained(coupled(source), few, SoftTargets(rows="target", head="centroids"))


def test_a_probe_is_fitted_anew_for_every_experience(teacher, digits):
    sets = [digits(30), digits(30, shift=0.1)]
    data = transfer_benchmark(sets, sets)
    plugin = SoftTargets(rows="target", head="probe")
    found = []

    class Keep(CETLPlugin):
        def after_training_exp(self, strategy, *args, **kwargs):
            found.append(plugin.classifier.weight.clone())

    trained(coupled(teacher), data, plugin, Keep())
    assert len(found) == 2 and not torch.allclose(*found)


def test_a_probe_needs_the_strategy(teacher, few):
    net = student()
    naive = Naive(
        model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), evaluator=None,
        plugins=[SoftTargets(source=teacher, head="probe")],
    )  # fmt: skip
    with pytest.raises(ValueError, match="goes with CETLStrategy"):
        naive.train(few.labelled_stream)


def test_precomputed_features_need_a_head(few):
    rows = torch.randn(60, 5)
    made = with_source_features(few, PrecomputedEncoder(rows), streams=["train"])
    model = coupled(PrecomputedEncoder(rows))
    assert trained(model, made, SoftTargets(head=nn.Linear(5, 3))).round_losses["L_soft"] > 0
    with pytest.raises(ValueError, match="no classifier"):
        trained(model, made, SoftTargets())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_features_of_timm_networks_are_classified_as_their_images(name):
    torch.manual_seed(0)
    encoder = TimmEncoder(name, pretrained=False)
    x = torch.rand(2, 3, 32, 32)
    assert encoder.classifies_features
    torch.testing.assert_close(
        encoder.classify(encoder(x)), encoder.logits(x), rtol=1e-3, atol=1e-4
    )
    earlier = TimmEncoder(name, pretrained=False, layer=-2)
    assert not earlier.classifies_features
    with pytest.raises(ValueError, match="classifier reads"):
        earlier.classify(torch.zeros(1, earlier.dim))


def test_an_earlier_layer_runs_the_source_for_its_logits(teacher, few):
    early = ModuleEncoder(teacher.module, "4", input_shape=SHAPE)
    assert not early.classifies_features and teacher.classifies_features
    s = trained(coupled(early), few, SoftTargets())
    assert s.round_losses["L_soft"] > 0


def test_soft_targets_without_a_source_network_are_refused(few):
    alone = coupled(None)
    with pytest.raises(ValueError, match="needs a source network"):
        trained(alone, few, SoftTargets())


def soft_target_weights(teacher, benchmark, **options):
    model = coupled(teacher)
    trained(model, benchmark, SoftTargets(weight=1.0, temperature=2.0, rows="target", **options))
    return [p.detach().clone() for p in model.target.parameters()]


def close(first, second):
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(first, second, strict=True))


@pytest.fixture
def labelled(digits):
    return transfer_benchmark(digits(40), digits(20, seed=1), labels_per_class=4)


@pytest.mark.parametrize(
    ("last", "same"), [(nn.Softmax(1), nn.LogSoftmax(1)), (nn.Sigmoid(), nn.Identity())]
)
def test_an_s_that_gives_probabilities_teaches_as_one_that_gives_logits(labelled, last, same):
    net = student(seed=5).eval()
    with torch.no_grad():
        net.head.weight *= 20  # a teacher that is sure
    goal, found = (
        soft_target_weights(ModuleEncoder(nn.Sequential(net, end), input_shape=SHAPE), labelled)
        for end in (same, last)
    )
    plain = ModuleEncoder(nn.Sequential(net, nn.Tanh()), input_shape=SHAPE)
    assert close(goal, found) and not close(goal, soft_target_weights(plain, labelled))


def test_a_head_that_gives_probabilities_teaches_as_one_that_gives_logits(labelled):
    teacher = ModuleEncoder(student(seed=5), input_shape=SHAPE)
    torch.manual_seed(0)
    head = nn.Linear(teacher.dim, 3)
    goal = soft_target_weights(teacher, labelled, head=head)
    with pytest.warns(RuntimeWarning, match="head= gives probabilities"):
        found = soft_target_weights(teacher, labelled, head=nn.Sequential(head, nn.Softmax(1)))
    assert close(goal, found)


def test_an_s_that_gives_a_dict_is_refused_with_its_keys_and_taught_by_output(labelled):
    answers = Of(lambda m, x: {"logits": m.net(x), "x": x}, net=student(seed=5))
    with pytest.raises(ValueError, match=r"a dict with the keys \['logits', 'x'\]"):
        soft_target_weights(ModuleEncoder(answers, input_shape=SHAPE), labelled)
    named = ModuleEncoder(answers, input_shape=SHAPE, output="logits")
    plain = ModuleEncoder(student(seed=5), input_shape=SHAPE)
    assert close(soft_target_weights(named, labelled), soft_target_weights(plain, labelled))


def test_a_head_that_was_given_is_kept_in_the_state():
    first, second = (SoftTargets(head=nn.Linear(3, 2)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.head.weight, second.head.weight)
    second.load_state_dict({"head": None})  # of a run without one
    assert torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_that_a_head_has_no_row_of_are_left_out(teacher, temperature):
    """T2's logits of them do not move; the others move as if there were no such class."""
    torch.manual_seed(0)
    features, logits = torch.randn(4, teacher.dim), torch.randn(4, 10, requires_grad=True)
    labels = torch.arange(8) % 3
    head = linear_probe(torch.randn(8, teacher.dim), labels, 1.0, num_classes=10)
    plugin = SoftTargets(temperature=temperature, head=head, source=teacher)
    batch = Batch([torch.zeros(4, *SHAPE), *unread(4)], features)
    batch.logits = logits
    net = student()
    strategy = Naive(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), evaluator=None)
    loss = plugin.loss(strategy, batch)
    (gradient,) = torch.autograd.grad(loss, logits)
    alone = logits.detach()[:, :3].requires_grad_()
    wanted = soft_target_loss(alone, head(features)[:, :3], temperature)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient[:, :3], torch.autograd.grad(wanted, alone)[0])
    assert not gradient[:, 3:].any()


@pytest.mark.parametrize(
    "head", [Centroids(torch.randn(5, 16), 500.0), nn.Linear(16, 5), nn.Linear(16, 5).bfloat16()]
)
def test_a_head_computes_in_its_own_precision_under_autocast(teacher, head):
    strategy = Naive(model=head, optimizer=torch.optim.SGD([torch.zeros(1)], 0.1), evaluator=None)
    batch = Batch([torch.zeros(4, *SHAPE), *unread(4)], torch.rand(4, 16))
    batch.logits = torch.zeros(4, 5)
    with torch.no_grad():
        wanted = head(batch.features.to(next(head.parameters(), batch.features).dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = SoftTargets(head=head, source=teacher).teacher_logits(strategy, batch)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [-1000, -12345, -math.inf])
def test_classes_that_t2_masks_are_left_out(teacher, value, dtype):
    """T2's logits of the others move as if there were no such class."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), IncrementalClassifier(64, 5, mask_value=value)).to(dtype)
    net[1].active_units[[0, 2, 3]] = 1
    strategy = Naive(model=net, optimizer=torch.optim.SGD(net.parameters(), 0.1), evaluator=None)
    head = nn.Linear(teacher.dim, 5)
    batch = Batch([torch.rand(4, *SHAPE), *unread(4)], torch.randn(4, teacher.dim))
    batch.logits = net(batch.images.to(dtype)).float()
    loss = SoftTargets(head=head, source=teacher).loss(strategy, batch)
    seen = batch.logits[:, [0, 2, 3]]
    wanted = soft_target_loss(seen, head(batch.features)[:, [0, 2, 3]], 4.0)
    torch.testing.assert_close(loss, wanted)
    weight = net[1].classifier.weight
    gradients = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in (loss, wanted)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()
