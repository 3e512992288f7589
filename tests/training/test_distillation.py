import copy
import math

import pytest
import torch
from avalanche.training.plugins import LRSchedulerPlugin, LwFPlugin
from avalanche.training.supervised import Naive
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CETLStrategy,
    CoupledModel,
    DecoderHints,
    FitNetsHints,
    GFISettings,
    ModuleEncoder,
    PrecomputedEncoder,
    SoftTargets,
    TimmEncoder,
    adaptation_benchmark,
    distillation_benchmark,
    linear_probe,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.plugins.hints import hint_loss
from avalanche_cetl.plugins.losses import LossRows
from avalanche_cetl.plugins.soft_targets import soft_target_loss
from avalanche_cetl.training import VARIANTS, NonFiniteLossError

SHAPE = (1, 8, 8)


def unread(count):
    """Labels and task labels that a loss does not read."""
    return torch.full((count,), -1), torch.zeros(count)


@pytest.fixture
def teacher(digits):
    """A classifier that knows the three classes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )
    x, y = digits(120, seed=7)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return ModuleEncoder(net, input_shape=SHAPE)


@pytest.fixture
def few(digits):
    return transfer_benchmark(digits(60), digits(30, seed=1), labels_per_class=2)


def student(width=0.1, seed=1):
    torch.manual_seed(seed)
    return CICNN(3, SHAPE, width=width)


def trained(model, benchmark, *plugins, lr=1e-2, **options):
    settings = {
        "variant": "e",
        "train_epochs": 2,
        "warmup_epochs": 1,
        "train_mb_size": 16,
        "gfi": GFISettings(samples=8),
        "evaluator": None,
        **options,
    }
    torch.manual_seed(2)
    strategy = CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr),
        plugins=list(plugins),
        **settings,
    )
    strategy.train(benchmark.train_stream)
    return strategy


def coupled(teacher, seed=1):
    return CoupledModel.build(teacher, student(seed=seed), SHAPE)


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


def test_the_gradient_keeps_its_size_as_the_temperature_changes():
    torch.manual_seed(0)
    logits = torch.randn(8, 5, requires_grad=True)
    sizes = []
    for temperature in (20.0, 40.0):
        loss = soft_target_loss(logits, torch.randn(8, 5, generator=_seeded()), temperature)
        sizes.append(float(torch.autograd.grad(loss, logits)[0].norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def _seeded():
    return torch.Generator().manual_seed(3)


def test_hint_loss():
    hint = torch.tensor([3.0, -4.0], requires_grad=True)
    assert float(hint_loss(hint, hint)) == 0
    found = torch.zeros(2, requires_grad=True)
    hint_loss(found, hint).backward()
    assert float(hint_loss(found, hint)) == 1 and hint.grad is None
    assert found.grad.tolist() == pytest.approx([-6 / 25, 8 / 25])
    assert float(hint_loss(torch.ones(2), torch.zeros(2))) > 0  # no division by zero


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("rows", ["labelled", "target"])
def test_every_variant_takes_every_loss(teacher, few, variant, rows):
    plugins = [
        SoftTargets(2.0, 0.5, rows=rows),
        FitNetsHints("features.0", "0", rows=rows),
        DecoderHints(0.3),
    ]
    s = trained(coupled(teacher), few, *plugins, variant=variant)
    assert {"L_soft", "L_hint", "L_fitnet"} <= set(s.round_losses)
    assert all(math.isfinite(value) for value in s.round_losses.values())
    assert plugins[1].regressor is not None
    assert not any(m._forward_hooks for m in s.model.modules())


@pytest.mark.parametrize("rows", ["labelled", "target"])
def test_which_rows_it_reads(teacher, few, rows):
    seen = []

    class Spy(SoftTargets):
        def loss(self, strategy, batch):
            seen.append((strategy.stage.value, len(batch.images)))
            assert batch.logits.shape == (len(batch.images), 3)
            return super().loss(strategy, batch)

    trained(coupled(teacher), few, Spy(rows=rows), train_epochs=1)
    stage, images = ("stage 3", 6) if rows == "labelled" else ("stage 2", 60)
    assert {name for name, _ in seen} == {stage} and sum(n for _, n in seen) == images


def test_soft_targets_teach_without_labels(teacher, few, digits):
    """Six labels alone are few; S's answers on all images are many."""
    x, _ = digits(60, seed=5)

    def accuracy(*plugins):
        model = coupled(teacher)
        trained(model, few, *plugins, train_epochs=6, lr=5e-3)
        model.eval()
        with torch.no_grad():
            return float((model(x).argmax(1) == teacher.logits(x).argmax(1)).float().mean())

    assert accuracy(SoftTargets(rows="target")) > accuracy()


@pytest.mark.parametrize("source_layer", [None, "0", "4"])
@pytest.mark.parametrize("target_layer", ["features.0", "hidden"])
def test_hints_come_nearer(teacher, few, source_layer, target_layer):
    """Maps and vectors on either side; the regressor learns and T2's layer moves."""
    plugin = FitNetsHints(target_layer, source_layer)
    model = coupled(teacher)
    first = trained(model, few, plugin, train_epochs=1).round_losses["L_fitnet"]
    weights = [p.detach().clone() for p in plugin.regressor.parameters()]
    last = trained(model, few, plugin, train_epochs=5).round_losses["L_fitnet"]
    assert last < first
    moved = [
        not torch.equal(a, b) for a, b in zip(weights, plugin.regressor.parameters(), strict=True)
    ]
    assert all(moved)


def test_the_regressor_follows_the_schedule(teacher, few):
    model = coupled(teacher)
    plugin = FitNetsHints("features.0", "0")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    CETLStrategy(
        model=model,
        optimizer=optimizer,
        variant="e",
        train_epochs=3,
        train_mb_size=16,
        plugins=[plugin, LRSchedulerPlugin(schedule)],
        evaluator=None,
    ).train(few.train_stream)
    group = plugin._optimizer.param_groups[0]
    assert type(plugin._optimizer) is torch.optim.SGD and group["momentum"] == 0.9
    assert group["lr"] == pytest.approx(0.1 * 0.5**2)


def test_in_a_stock_strategy_beside_another_plugin(teacher, digits):
    benchmark = distillation_benchmark(digits(60), digits(30, seed=1))
    net = student()
    hints = FitNetsHints("features.0", "0", rows="labelled", source=teacher)
    strategy = Naive(
        model=net,
        optimizer=torch.optim.Adam(net.parameters(), 1e-2),
        train_mb_size=16,
        train_epochs=2,
        plugins=[SoftTargets(source=teacher), hints, LwFPlugin(1.0, 2.0)],
        evaluator=None,
    )
    before = [p.detach().clone() for p in teacher.parameters()]
    strategy.train(benchmark.train_stream)
    assert hints.regressor is not None and not net.features[0]._forward_hooks
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_stored_features_give_the_same_logits_without_running_the_source(
    teacher, few, tmp_path, monkeypatch
):
    stored = with_source_features(few, teacher, tmp_path, dtype="float32")
    live = trained(coupled(teacher), few, SoftTargets(), SoftTargets(rows="target"))
    model = coupled(teacher)
    monkeypatch.setattr(model.source, "encode", None)
    monkeypatch.setattr(model.source, "logits", None)
    found = trained(model, stored, SoftTargets(), SoftTargets(rows="target"))
    assert found.round_losses == pytest.approx(live.round_losses, rel=1e-5)


def test_a_head_speaks_for_a_source_with_other_classes(few):
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
    plugin = SoftTargets(2.0, rows="target", head="probe")
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


def test_without_labelled_target_rows_there_is_no_probe(teacher, digits):
    data = adaptation_benchmark(digits(30), digits(30, shift=0.1), digits(30, seed=2))
    plugin = SoftTargets(rows="target", head="probe")
    assert "L_soft" not in trained(coupled(teacher), data, plugin).round_losses
    assert plugin.classifier is None
    alone = CoupledModel.build(None, student(), SHAPE)
    few = transfer_benchmark(digits(30), digits(30))
    plugin = SoftTargets(head="probe")
    assert "L_soft" not in trained(alone, few, plugin).round_losses


def test_a_probe_speaks_of_the_classes_that_it_knows(teacher, digits):
    """Target labels of some classes only: the source rows know more, so there is no probe."""
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
    rows = LossRows(x[:4], None, torch.randn(4, 3, requires_grad=True), *unread(4))
    loss = plugin.loss(s, rows)
    loss.backward()
    assert (rows.logits.grad[:, 2] == 0).all() and rows.logits.grad[:, :2].abs().sum() > 0
    wanted = soft_target_loss(rows.logits[:, :2], plugin.classifier(teacher(x[:4])), 4.0)
    torch.testing.assert_close(loss, wanted)


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
    with pytest.raises(ValueError, match="head='prob'"):
        SoftTargets(head="prob")


@pytest.mark.parametrize("source_layer", [None, "0"])
def test_a_regressor_in_half_precision_keeps_its_weights(teacher, few, source_layer):
    plugin = FitNetsHints("features.0", source_layer)
    s = trained(coupled(teacher), few, plugin, precision="bfloat16")
    assert {p.dtype for p in plugin.regressor.parameters()} == {torch.float32}
    plain = trained(coupled(teacher), few, FitNetsHints("features.0", source_layer))
    assert s.round_losses["L_fitnet"] == pytest.approx(plain.round_losses["L_fitnet"], rel=0.1)


def test_precomputed_features_need_a_head(few):
    rows = torch.randn(60, 5)
    made = with_source_features(few, PrecomputedEncoder(rows), streams=["train"])
    model = coupled(PrecomputedEncoder(rows))
    assert trained(model, made, SoftTargets(head=nn.Linear(5, 3))).round_losses["L_soft"] > 0
    with pytest.raises(ValueError, match="no classifier"):
        trained(model, made, SoftTargets())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm_classifies_its_features(name):
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


def test_bad_arguments(teacher, few):
    with pytest.raises(ValueError, match="temperature=0"):
        SoftTargets(0)
    with pytest.raises(ValueError, match="weight=-1"):
        SoftTargets(weight=-1)
    with pytest.raises(ValueError, match="'labelled', 'target'"):
        SoftTargets(rows="all")
    with pytest.raises(ValueError, match="weight=nan"):
        DecoderHints(math.nan)
    with pytest.raises(ValueError, match="target_layer='nowhere'"):
        trained(coupled(teacher), few, FitNetsHints("nowhere"))
    with pytest.raises(ValueError, match="source_layer='nowhere'"):
        trained(coupled(teacher), few, FitNetsHints("features.0", "nowhere"))
    alone = CoupledModel.build(None, student(), SHAPE)
    with pytest.raises(ValueError, match="needs a source network"):
        trained(alone, few, SoftTargets())


def test_bad_places(teacher, few):
    net = student()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    naive = {"model": net, "optimizer": optimizer, "evaluator": None}
    with pytest.raises(ValueError, match="CoupledModel"):
        Naive(plugins=[DecoderHints()], **naive).train(few.train_stream)
    with pytest.raises(ValueError, match="rows='labelled'"):
        Naive(plugins=[FitNetsHints("features.0", source=teacher)], **naive).train(few.train_stream)
    with pytest.raises(ValueError, match="no stage 2"):
        Naive(plugins=[SoftTargets(rows="target", source=teacher)], **naive).train(few.train_stream)


def test_a_teacher_that_is_not_finite_is_named(teacher, few):
    broken = ModuleEncoder(teacher.module, input_shape=SHAPE)
    with torch.no_grad():
        broken.module[6].bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="L_soft"):
        trained(coupled(broken), few, SoftTargets())


def test_a_source_of_its_own_runs_where_the_stored_features_are_the_models(teacher, few, tmp_path):
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.module[4].weight.mul_(2)
    stored = with_source_features(few, teacher, tmp_path, dtype="float32")

    def losses(benchmark):
        plugins = SoftTargets(source=other), SoftTargets(rows="target", source=other)
        return trained(coupled(teacher), benchmark, *plugins, train_epochs=1).round_losses

    found, live = losses(stored), losses(few)
    assert found == pytest.approx(live, rel=1e-4)
    own = trained(coupled(teacher), few, SoftTargets(), SoftTargets(rows="target"), train_epochs=1)
    assert found["L_soft"] != pytest.approx(own.round_losses["L_soft"], rel=1e-2)


class ChannelsLast(nn.Module):
    """A convolution whose map is turned round, normalised, and overwritten."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.LayerNorm(6)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x).permute(0, 2, 3, 1))).mean((1, 2)))


@pytest.mark.parametrize(("layer", "source_layer"), [("norm", "act"), ("act", "norm")])
def test_fitnets_reads_maps_with_channels_last_as_their_layers_gave_them(few, layer, source_layer):
    torch.manual_seed(0)
    teacher = ModuleEncoder(ChannelsLast(), input_shape=SHAPE)
    plugin, seen = FitNetsHints(layer, source_layer), []

    class Spy(CETLPlugin):
        def after_stage(self, strategy, *args, **kwargs):
            if strategy.stage.value == "stage 2":
                x = strategy.coupled.images[:2]
                batch = LossRows(x, None, torch.zeros(2, 3), *unread(2))
                seen.append((x, plugin._read_hint(strategy, batch)))

    model = CoupledModel.build(teacher, ChannelsLast(), SHAPE)
    trained(model, few, plugin, Spy(), train_epochs=1)
    assert (plugin.regressor.in_channels, plugin.regressor.out_channels) == (6, 6)
    x, hint = seen[-1]
    net = teacher.module
    wanted = net.norm(net.conv(x).permute(0, 2, 3, 1))
    wanted = wanted.relu() if source_layer == "act" else wanted
    torch.testing.assert_close(hint, wanted.permute(0, 3, 1, 2))


def test_fitnets_keeps_nothing_in_stages_that_do_not_read_it(teacher, few):
    plugin, kept = FitNetsHints("features.0", "0"), []

    class Spy(CETLPlugin):
        def after_update(self, strategy, *args, **kwargs):
            kept.append(plugin._guided)

    trained(coupled(teacher), few, plugin, Spy(), train_epochs=1)
    assert kept and all(found is None for found in kept)


class _Overwriting(nn.Module):
    """A student whose forward pass begins in place, as that of many published networks."""

    def __init__(self, writes):
        super().__init__()
        self.writes, self.layer = writes, nn.Linear(64, 3)

    def forward(self, x):
        x = x.sub_(0.5).mul_(3) if self.writes else (x - 0.5) * 3
        return self.layer(x.flatten(1))


def test_the_source_reads_the_images_as_they_were_before_the_student_wrote_into_them(
    teacher, digits
):
    weights = []
    for writes in (True, False):
        torch.manual_seed(1)
        student = _Overwriting(writes)
        strategy = Naive(
            model=student, optimizer=torch.optim.SGD(student.parameters(), 0.1),
            plugins=[SoftTargets(source=teacher)], train_mb_size=10, evaluator=None,
        )  # fmt: skip
        strategy.train(transfer_benchmark(digits(30), digits(30)).train_stream)
        weights.append(student.layer.weight.detach())
    assert torch.equal(*weights)
