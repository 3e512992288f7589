import copy

import pytest
import torch
from coupled_runs import moved, small_coupled, snapshot, strategy

from avalanche_cetl import CETLPlugin
from avalanche_cetl.training import (
    VARIANTS,
    ClassifyStage,
    Recipe,
    SourceStage,
    Stage,
    Variant,
)
from avalanche_cetl.training.variants import parse_variant

ALL = list(VARIANTS)


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
@pytest.mark.parametrize("variant", ALL)
def test_every_variant_trains_the_target_and_never_the_source(transfer, variant, alternate):
    model = small_coupled()
    before = snapshot(model)
    s = strategy(model, variant=variant, alternate=alternate, train_epochs=2)
    s.train(transfer.train_stream)
    changed = moved(model, before)
    assert {n for n in before if n.startswith("target.")} <= changed
    assert any(n.startswith("decoder.") for n in changed) == (s.warmup_epochs > 0)
    assert not any(n.startswith("source.") for n in changed)
    losses = s.round_losses
    assert "L_c" in losses and ("L_rt" in losses) == (variant != "direct")
    assert ("L_rs" in losses) == (variant in ("e", "fi", "gfi", "joint"))
    assert ("DWA1" in losses) == (variant in ("fi", "gfi"))
    assert (len(s.importance) == 3) == (variant in ("fi", "gfi"))


@pytest.mark.parametrize(("variant", "fixed"), [("f", True), ("two_step", True), ("u", False)])
def test_t1_is_fixed_after_the_warm_up_where_the_variant_fixes_it(transfer, variant, fixed):
    model = small_coupled()
    seen = []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            if strategy.stage is not Stage.SOURCE:
                seen.append(snapshot(model))

    strategy(model, variant=variant, train_epochs=2, plugins=[Watch()]).train(transfer.train_stream)
    names = model.decoder_parameters().keys()
    same = all(torch.equal(seen[0][n], dict(model.named_parameters())[n]) for n in names)
    assert same == fixed


def test_stages_train_the_networks_of_algorithm_1(transfer):
    model = small_coupled()
    log = []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            self.before = snapshot(model)

        def after_stage(self, strategy, *args, **kwargs):
            parts = {name.split(".")[0] for name in moved(model, self.before)}
            log.append((strategy.stage, parts))

    strategy(model, variant="e", warmup_epochs=0, plugins=[Watch()]).train(transfer.train_stream)
    assert log == [
        (Stage.SOURCE, {"decoder", "source_adapter"}),
        (Stage.COUPLED, {"decoder", "target"}),
        (Stage.CLASSIFY, {"target"}),
    ]


def test_variants_are_found_by_their_names_and_pass_through():
    for name, variant in VARIANTS.items():
        assert parse_variant(name) is parse_variant(variant) is variant and variant.name == name


def test_a_variant_needs_a_warm_up_where_no_stage_of_a_round_trains_t1_on_l_rs():
    needing = {name for name, variant in VARIANTS.items() if variant.needs_warmup}
    assert needing == {"f", "u", "two_step"}


def test_a_variant_records_the_losses_of_its_stages_and_their_penalties():
    assert VARIANTS["gfi"].names == ("L_rs", "L_rt", "L_c")
    assert VARIANTS["gfi"].recorded == ("L_rs", "L_rt", "L_c", "DWA2", "DWA1", "DWA3")
    assert VARIANTS["joint"].recorded == VARIANTS["joint"].names == ("L_c", "L_rt", "L_rs")


CLASSIFY = (ClassifyStage(),)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("own", ()), "variant 'own' has no stages"),
        (
            ("own", (SourceStage(), SourceStage())),
            "2 stages of variant 'own' are called 'stage 1': .* `name` in a subclass of one",
        ),
        (("own", ClassifyStage()), "the stages of variant 'own' are a tuple, got ClassifyStage"),
        (("own", (ClassifyStage,)), r"got the class ClassifyStage: write ClassifyStage\(\)"),
        (("own", ("stage 3",)), "a stage is an object of a TrainingStage, got 'stage 3'"),
        (("own", CLASSIFY, "ewc"), "importance='ewc'. Allowed: 'gfi', 'fisher', None"),
        (("", CLASSIFY), "name='': a text that is not empty"),
        (("gfi", CLASSIFY), "'gfi' is a variant of this package"),
        (("e", VARIANTS["e"].stages, "fisher"), "'e' is a variant of this package"),
        (("own", CLASSIFY, None, ("L_foo",)), "variant 'own' has 'L_foo' in its mixture"),
        (("own", CLASSIFY, None, ("L_rt",)), "variant 'own' has 'L_rt' in its mixture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_variant_cannot_be_is_refused_when_the_strategy_is_made(arguments, told):
    with pytest.raises((ValueError, TypeError), match=told):
        Recipe.of("paper", variant=Variant(*arguments))


def test_copies_of_this_packages_variants_keep_their_names():
    for variant in VARIANTS.values():
        assert parse_variant(copy.deepcopy(variant)).name == variant.name
