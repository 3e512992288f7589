import copy
import inspect
import math

import pytest
import torch
from avalanche.training.plugins import LwFPlugin
from avalanche.training.supervised import Naive
from coupled_runs import SHAPE
from loss_runs import coupled, student, trained
from networks import Of
from torch import nn

from avalanche_cetl import (
    DecoderHints,
    FitNetsHints,
    InformationMaximization,
    LossPlugin,
    MinimumClassConfusion,
    ModuleEncoder,
    SoftTargets,
    ViewConsistency,
    distillation_benchmark,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.training import VARIANTS, NonFiniteLossError


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("rows", ["labelled", "target"])
def test_every_variant_takes_every_loss(teacher, few, variant, rows):
    plugins = [
        SoftTargets(weight=0.5, temperature=2.0, rows=rows),
        FitNetsHints(target_layer="features.0", source_layer="0", rows=rows),
        DecoderHints(0.3),
    ]
    s = trained(coupled(teacher), few, *plugins, variant=variant)
    expected = {"L_soft", "L_fitnet"} | ({"L_hint"} if variant != "direct" else set())
    assert expected <= set(s.round_losses)
    assert all(math.isfinite(value) for value in s.round_losses.values())
    assert plugins[1].regressor is not None
    assert not any(m._forward_hooks for m in s.model.modules())


@pytest.mark.parametrize("rows", ["labelled", "target"])
def test_a_loss_reads_every_row_of_its_stage_once(teacher, few, rows):
    seen = []

    class Spy(SoftTargets):
        def loss(self, strategy, batch):
            seen.append((strategy.stage.value, len(batch.images)))
            assert batch.logits.shape == (len(batch.images), 3)
            return super().loss(strategy, batch)

    settings = {"train_epochs": 1, "stage_epochs": (1, 1, 1)}
    trained(coupled(teacher), few, Spy(rows=rows), **settings)
    stage, images = ("stage 3", 6) if rows == "labelled" else ("stage 2", 60)
    assert {name for name, _ in seen} == {stage} and sum(n for _, n in seen) == images


def test_losses_train_in_a_stock_strategy_beside_another_plugin(teacher, digits):
    benchmark = distillation_benchmark(digits(60), digits(30, seed=1))
    net = student()
    hints = FitNetsHints(
        target_layer="features.0", source_layer="0", rows="labelled", source=teacher
    )
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


def test_a_source_given_to_a_plugin_runs_where_stored_features_are_those_of_the_model(
    teacher, few, tmp_path
):
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


def test_a_loss_in_a_strategy_without_its_rows_is_refused(teacher, few):
    net = student()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    naive = {"model": net, "optimizer": optimizer, "evaluator": None}
    with pytest.raises(ValueError, match="CoupledModel"):
        Naive(plugins=[DecoderHints()], **naive).train(few.train_stream)
    with pytest.raises(ValueError, match="rows='labelled'"):
        Naive(plugins=[FitNetsHints(target_layer="features.0", source=teacher)], **naive).train(
            few.train_stream
        )
    with pytest.raises(ValueError, match="no stage 2"):
        Naive(plugins=[SoftTargets(rows="target", source=teacher)], **naive).train(few.train_stream)


def test_a_teacher_that_is_not_finite_is_named(teacher, few):
    broken = ModuleEncoder(teacher.module, input_shape=SHAPE)
    with torch.no_grad():
        broken.module[6].bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="L_soft"):
        trained(coupled(broken), few, SoftTargets())


def test_the_source_reads_the_images_as_they_were_before_the_student_wrote_into_them(
    teacher, digits
):
    weights = []
    for forward in (
        lambda m, x: m.layer(x.sub_(0.5).mul_(3).flatten(1)),  # as many published networks begin
        lambda m, x: m.layer(((x - 0.5) * 3).flatten(1)),
    ):
        torch.manual_seed(1)
        student = Of(forward, layer=nn.Linear(64, 3))
        strategy = Naive(
            model=student, optimizer=torch.optim.SGD(student.parameters(), 0.1),
            plugins=[SoftTargets(source=teacher)], train_mb_size=10, evaluator=None,
        )  # fmt: skip
        strategy.train(transfer_benchmark(digits(30), digits(30)).train_stream)
        weights.append(student.layer.weight.detach())
    assert torch.equal(*weights)


#: The loss plugins: what each has to be given, and the rows that it reads where none are given.
LOSSES = {
    LossPlugin: ({}, "labelled"),
    SoftTargets: ({}, "labelled"),
    FitNetsHints: ({"target_layer": "hidden"}, "target"),
    DecoderHints: ({}, "target"),
    InformationMaximization: ({}, "unlabelled"),
    MinimumClassConfusion: ({}, "unlabelled"),
    ViewConsistency: ({}, "target"),
}
UNLABELLED = (InformationMaximization, MinimumClassConfusion, ViewConsistency)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_has_its_weight_first_and_rows_of_its_own_by_default(kind):
    given, rows = LOSSES[kind]
    parameters = inspect.signature(kind).parameters
    assert next(iter(parameters)) == "weight"
    assert kind(**given).rows == rows
    assert "rows" not in parameters or parameters["rows"].default is None


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        *((kind, {"weight": -1.0}, "weight=-1.0") for kind in LOSSES),
        *((kind, {"weight": math.nan}, "weight=nan") for kind in LOSSES),
        *((kind, {"weight": math.inf}, "weight=inf") for kind in LOSSES),
        *((kind, {"rampup_rounds": -1}, "rampup_rounds") for kind in UNLABELLED),
        *((kind, {"rows": "source"}, "'labelled', 'target', 'unl") for kind in UNLABELLED[:2]),
        *((kind, {"temperature": math.nan}, "temperature") for kind in UNLABELLED[:2]),
        *((kind, {"temperature": 0.0}, "finite and > 0") for kind in UNLABELLED[:2]),
        (InformationMaximization, {"balance": -1.0}, "balance"),
        (ViewConsistency, {"balance": math.nan}, "balance"),
        (ViewConsistency, {"decay": 1.0}, "decay"),
        (ViewConsistency, {"threshold": -0.1}, "threshold"),
        (ViewConsistency, {"rows": "labelled"}, "Allowed: 'target', 'unlabelled'"),
        (SoftTargets, {"temperature": 0}, "temperature=0"),
        (SoftTargets, {"rows": "all"}, "'labelled', 'target'"),
        (SoftTargets, {"head": "prob"}, "head='prob'"),
    ],
)
def test_arguments_out_of_range_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**LOSSES[kind][0], **arguments})
