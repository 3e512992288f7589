"""Stages of a user's own: plugins act in every stage that reads their rows, and keep nothing."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from coupled_runs import moved, small_coupled, snapshot, strategy
from torch import nn

from avalanche_cetl import (
    CETLPlugin,
    FitNetsHints,
    InformationMaximization,
    LossPlugin,
    SoftTargets,
    ViewConsistency,
)
from avalanche_cetl.common.hooks import Kept
from avalanche_cetl.training import (
    ClassifyStage,
    MergedStage,
    Payment,
    Stage,
    TrainingStage,
    Variant,
)
from avalanche_cetl.training.stages import Callbacks


class Own(TrainingStage):
    """T2 sees rows; its own loss is small."""

    name = "own"
    trains = ("target",)
    names = ("L_own",)

    def __init__(self, kind=Stage.COUPLED, reads="target", callbacks=Callbacks.PENALTIES, times=1):
        self.kind, self.reads, self.callbacks, self.times = kind, reads, callbacks, times

    def losses(self, networks, batch):
        for _ in range(self.times):
            _, logits = networks.encode(networks.view(batch.images), batch.tasks)
        return {"L_own": 1e-3 * logits.square().mean()}


class Silent(Own):
    """A stage in which T2 does not run."""

    def losses(self, networks, batch):
        return {"L_own": sum(p.square().sum() for p in networks.model.target.parameters()) * 1e-3}


def run(benchmark, stage, *plugins, beside=(), **settings):
    variant = Variant("own", (stage, *beside))
    s = strategy(small_coupled(), variant=variant, plugins=list(plugins), **settings)
    torch.manual_seed(0)
    s.train(benchmark.train_stream)
    return s


def same(first, second):
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


MAKE = {
    "SoftTargets": lambda rows: SoftTargets(weight=1.0, temperature=2.0, rows=rows),
    "InformationMaximization": lambda rows: InformationMaximization(1.0, rows=rows),
    "FitNetsHints": lambda rows: FitNetsHints(target_layer="classifier.1", rows=rows),
}


STAGES = {str(kind): {"kind": kind} for kind in Stage} | {"all": {"callbacks": Callbacks.ALL}}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_plugins_of_target_rows_act_in_every_stage_that_reads_them(transfer, stage, make):
    plain = run(transfer, Own(**stage))
    s = run(transfer, Own(**stage), make("target"))
    name = make("target").name
    assert s.round_losses[name] > 0 and not same(s, plain)


@pytest.mark.parametrize("callbacks", [Callbacks.PENALTIES, Callbacks.ALL], ids=str)
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_plugins_of_labelled_rows_act_in_a_stage_that_reads_them(transfer, make, callbacks):
    stage = Own(reads="labelled", callbacks=callbacks)
    s = run(transfer, stage, make("labelled"))
    assert s.round_losses[make("labelled").name] > 0 and not same(s, run(transfer, stage))


@pytest.mark.parametrize("rows", ["target", "labelled"])
def test_plugins_do_not_act_in_a_stage_of_other_rows(transfer, rows):
    stage = Own(reads={"target": "labelled", "labelled": "target"}[rows])
    s = run(transfer, stage, SoftTargets(weight=1.0, temperature=2.0, rows=rows))
    assert "L_soft" not in s.round_losses and same(s, run(transfer, stage))


@pytest.mark.parametrize(
    "stage",
    [Own(callbacks=Callbacks.NONE), Silent(), Silent(reads="labelled")],
    ids=["no callbacks", "T2 does not run", "nor on labelled rows"],
)
def test_plugins_add_nothing_where_they_cannot(transfer, stage):
    rows = stage.reads
    s = run(transfer, stage, SoftTargets(weight=1.0, temperature=2.0, rows=rows))
    assert "L_soft" not in s.round_losses and same(s, run(transfer, stage))


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_it_acts_beside_other_stages_of_the_same_rows(transfer, alternate):
    second = Own()
    second.name = "second"
    soft = SoftTargets(weight=1.0, temperature=2.0, rows="target")
    s = run(transfer, Own(), soft, beside=(second, ClassifyStage()), alternate=alternate)
    assert s.round_losses["L_soft"] > 0 and s.round_losses["L_c"] > 0


def test_the_loss_is_of_the_rows_and_logits_of_the_stage(transfer):
    seen = []

    class Look(LossPlugin):
        name = "L_look"

        def loss(self, strategy, batch):
            seen.append((batch, strategy.model.target.eval()(batch.images)))
            strategy.model.target.train()
            return batch.logits.mean()

    run(transfer, Own(), Look(rows="target"))
    assert seen
    for batch, logits in seen:
        torch.testing.assert_close(batch.logits, logits)
        assert batch.images.shape[0] == len(batch.labels) == len(batch.tasks)


def test_a_mean_teacher_follows_in_such_a_stage(transfer):
    teachers = []

    class Look(CETLPlugin):
        def after_stage(self, strategy, *args, **kwargs):
            teachers.append([p.clone() for p in view._teacher.parameters()])

    view = ViewConsistency(10.0, decay=0.5)
    run(transfer, Own(Stage.CLASSIFY), view, Look(), train_epochs=2)
    assert any(not torch.equal(a, b) for a, b in zip(teachers[-2], teachers[-1], strict=True))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("stage_rows", "rows"), [("target", "target"), ("labelled", "labelled"), ("target", "labelled")]
)
@pytest.mark.parametrize("callbacks", list(Callbacks), ids=str)
def test_fitnets_keeps_no_pass_after_the_step(
    transfer, monkeypatch, callbacks, stage_rows, rows, times
):
    alive, count = [], []

    class Watch(CETLPlugin):
        def after_step(self, strategy, *args, **kwargs):
            self.look()

        def after_training_iteration(self, strategy, *args, **kwargs):
            self.look()

        def look(self):
            gc.collect()
            count.append(sum(one() is not None for one in alive))

    keep = Kept._keep

    def kept(self, value, verb):
        keep(self, value, verb)
        if value.requires_grad and self is hints._guided:
            alive.append(weakref.ref(self.values[-1]))

    monkeypatch.setattr(Kept, "_keep", kept)
    hints = FitNetsHints(target_layer="classifier.1", rows=rows)
    stage = Own(reads=stage_rows, callbacks=callbacks, times=times)
    gc.freeze()  # what was there before need not be looked through at every step
    try:
        run(transfer, stage, hints, Watch(), train_mb_size=30)
    finally:
        gc.unfreeze()
    assert count and set(count) == {0}
    assert bool(alive) is (stage_rows == rows and callbacks is not Callbacks.NONE)


class Pairs(Own):
    """T2 sees every image twice; ``told`` is whether plugins are told which logits are whose."""

    def __init__(self, reads, told):
        super().__init__(reads=reads)
        self.told = told

    def losses(self, networks, batch):
        twice = torch.cat([batch.images, batch.images])
        _, logits = networks.encode(twice, batch.tasks.repeat(2))
        if self.told:
            batch.logits = logits[: len(batch)]
        return {"L_own": logits.square().mean()}


@pytest.mark.parametrize("rows", ["target", "labelled"])
def test_a_stage_that_runs_t2_on_other_rows_says_which_logits_are_whose(transfer, rows):
    soft = SoftTargets(weight=1.0, rows=rows)
    assert run(transfer, Pairs(rows, True), soft).round_losses["L_soft"] > 0
    with pytest.raises(ValueError, match=r"ran T2 on \d+ rows for a mini-batch of .*batch.logits"):
        run(transfer, Pairs(rows, False), soft)
    assert run(transfer, Pairs(rows, False)).round_losses["L_own"] > 0


@pytest.mark.parametrize("told", [True, False])
def test_fitnets_refuses_a_stage_that_runs_t2_on_other_rows(transfer, told):
    with pytest.raises(ValueError, match=r"target_layer='classifier\.1' gave"):
        run(transfer, Pairs("target", told), FitNetsHints(target_layer="classifier.1"))


class Headed(Own):
    """A stage with a layer of its own."""

    def make_module(self, model):
        return nn.Linear(model.code_dim, 1)

    def losses(self, networks, batch):
        code, _ = networks.encode(batch.images, batch.tasks)
        return {"L_own": networks.modules[self.label](code).square().mean()}


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_module_of_a_stage_learns_and_drops_its_gradients(transfer, alternate, accumulate):
    if alternate == "iteration" and accumulate > 1:
        return
    before, seen = [], []

    class Look(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            before.append(strategy.networks.modules["own"].weight.detach().clone())

        def before_backward(self, strategy, *args, **kwargs):
            seen.append(strategy.networks.modules["own"].weight.grad)

    s = run(transfer, Headed(), Look(), alternate=alternate, accumulate=accumulate)
    assert not torch.equal(s.networks.modules["own"].weight, before[0])
    assert [grad is None for grad in seen[:accumulate]] == [True, False][:accumulate]


def test_every_strategy_has_a_module_of_its_own_of_a_stage(transfer):
    stage = Headed()
    first, second = (run(transfer, stage) for _ in range(2))
    modules = [s.networks.modules["own"] for s in (first, second, copy.deepcopy(first))]
    assert len(set(map(id, modules))) == 3
    third = copy.deepcopy(first)
    torch.manual_seed(0), first.train(transfer.train_stream)
    torch.manual_seed(0), third.train(transfer.train_stream)
    assert torch.equal(third.networks.modules["own"].weight, first.networks.modules["own"].weight)


def test_epochs_and_learning_rate_of_a_stage_come_before_those_of_its_kind(transfer):
    stage = Own()
    stage.epochs, stage.lr_factor = 3, 0.25
    steps = []

    class Count(CETLPlugin):
        def after_step(self, strategy, *args, **kwargs):
            if strategy.running is stage:
                steps.append(strategy.optimizers["own"].optimizer.param_groups[0]["lr"])

    run(transfer, stage, Count(), train_mb_size=30)  # 60 rows
    assert steps == [0.25 * 1e-2] * 6


def changed(stage, **attributes):
    for name, value in attributes.items():
        setattr(stage, name, value)
    return stage


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (changed(Own(), epochs=0), "epochs=0"),
        (changed(Own(), epochs=1.5), "epochs=1.5"),
        (changed(Own(), lr_factor=0.0), "lr_factor=0.0"),
        (changed(Own(), lr_factor=float("nan")), "lr_factor=nan"),
        (changed(Own(), lr_factor="1"), "lr_factor='1'"),
        (changed(Own(), kind="stage 2"), "kind='stage 2': a Stage"),
        (changed(Own(), name=None, kind=Stage.MERGED), "name=None: a text"),
        (changed(Own(), reads="unlabelled"), "reads='unlabelled': 'target' or 'labelled'"),
        (changed(Own(), beside="labelled"), "beside='labelled'"),
        (changed(Own(), trains=("encoder",)), r"trains=\('encoder',\): a tuple of 'decoder'"),
        (changed(Own(), trains="target"), "trains='target'"),
        (changed(Own(), trains=("own",)), "its own module it always trains"),
        (changed(Own(), names="L_own"), "names='L_own': a tuple of the names"),
        (changed(Own(), names=("",)), "names="),
        (changed(Own(), pays="GFI1"), "pays='GFI1': None, or a Payment"),
        (changed(Own(), pays=Payment("GFI4", "DWA4")), "pays=.*GFI4"),
        (changed(Own(), measures=("GFI4",)), "measures=.*'GFI4'"),
        (changed(Own(), callbacks="all"), "callbacks='all': one of Callbacks"),
        (TrainingStage(), r"TrainingStage has no method losses\(networks, batch\)"),
        (MergedStage((ClassifyStage(), changed(Own(), reads="all"))), "stage 'own' has reads"),
        (Headed(callbacks=Callbacks.ALL), "stage 'own' has a module"),
        (MergedStage((ClassifyStage(), Headed())), "stage 'own' has a module.*'merged' steps"),
        (MergedStage((ClassifyStage(), changed(Own(), epochs=2))), "do not merge it"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_a_stage_cannot_have_is_refused_when_the_strategy_is_made(stage, message):
    with pytest.raises(ValueError, match=message):
        strategy(small_coupled(), variant=Variant("own", (stage,)))


def test_epochs_of_a_stage_that_shares_its_steps_are_refused():
    variant = Variant("own", (changed(Own(), epochs=2),))
    with pytest.raises(ValueError, match="stage 'own' has epochs=2"):
        strategy(small_coupled(), variant=variant, alternate="iteration")


@pytest.mark.parametrize("callbacks", [Callbacks.NONE, Callbacks.PENALTIES], ids=str)
def test_a_stage_without_a_loss_leaves_the_weights(transfer, callbacks):
    class Idle(Own):
        def losses(self, networks, batch):
            return {}

    before = snapshot(small_coupled())
    assert not moved(run(transfer, Idle(callbacks=callbacks), warmup_epochs=0).model, before)


class Gives(Own):
    """A stage that computes what it is given a function for."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def losses(self, networks, batch):
        _, logits = networks.encode(batch.images, batch.tasks)
        return self.function(logits, networks)


class Adds(LossPlugin):
    """A plugin of the same kind."""

    name, default_rows = "L_adds", "target"

    def __init__(self, function):
        super().__init__()
        self.function = function

    def loss(self, strategy, batch):
        return self.function(batch.logits)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda z, n: {"L_foo": z.mean()}, r"gave the loss 'L_foo', and its names are \('L_own'"),
        (lambda z, n: z.mean(), r"losses\(\) returns a dict of losses by name, got tensor"),
        (lambda z, n: None, "losses by name, got None"),
        (lambda z, n: {"L_own": z.mean(1)}, r"gave as L_own a tensor of shape \(\d+,\)"),
        (lambda z, n: {"L_own": z.argmax()}, r"type torch.int64: a scalar tensor of floats"),
        (lambda z, n: {"L_own": 0.3}, "gave as L_own 0.3: a scalar"),
        (lambda z, n: {"L_own": None}, "gave as L_own None: a scalar"),
        (lambda z, n: {"L_own": n.modules["own"](z)}, r"has no module: its make_module\(model\)"),
    ],
    ids=["key", "no dict", "None", "vector", "int", "float", "no loss", "module"],
)
def test_losses_of_a_wrong_kind_are_refused_with_the_stage(transfer, function, told):
    with pytest.raises((TypeError, ValueError), match=f"stage 'own'.*{told}"):
        run(transfer, Gives(function))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda z: z.mean(1), r"a tensor of shape \(\d+,\) and type torch.float32"),
        (lambda z: 0.5, "0.5"),
        (lambda z: [z.mean()], "a list"),
    ],
    ids=["vector", "float", "list"],
)
def test_losses_of_a_wrong_kind_are_refused_with_the_plugin(transfer, value, told):
    with pytest.raises(TypeError, match=f"Adds gave as L_adds {told}: a scalar tensor"):
        run(transfer, Own(), Adds(value))


def test_a_plugin_without_a_loss_is_named(transfer):
    with pytest.raises(NotImplementedError, match="Bare has no method loss"):
        run(transfer, Own(), type("Bare", (LossPlugin,), {"name": "L_bare"})(rows="target"))


@pytest.mark.parametrize(
    ("value", "warned"),
    [
        (lambda z: z.detach().square().mean(), True),
        (lambda z: torch.tensor(0.3), True),
        (lambda z: torch.tensor(0.0), False),
        (lambda z: z.square().mean(), False),
    ],
    ids=["detached", "constant", "nothing to learn", "with a gradient"],
)
def test_a_loss_without_a_gradient_is_warned_of(transfer, value, warned):
    for made, name in (
        ((Gives(lambda z, n: {"L_own": value(z)}),), "L_own of stage 'own'"),
        ((Own(), Adds(value)), "L_adds of Adds"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(transfer, *made)
        told = [one for one in caught if f"{name} has no gradient" in str(one.message)]
        assert bool(told) is warned


def test_a_stage_with_nothing_to_train_may_have_a_loss_without_a_gradient(transfer):
    frozen = small_coupled()
    frozen.target.requires_grad_(False)
    stage = Gives(lambda z, n: {"L_own": z.square().mean()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        strategy(frozen, variant=Variant("own", (stage,))).train(transfer.train_stream)
    assert not [one for one in caught if "no gradient" in str(one.message)]


def test_networks_keep_no_logits_after_a_step(transfer):
    s = run(transfer, Own())
    assert s.networks.latest is None and s.coupled is None
