import pytest
from coupled_runs import strategy
from torch import nn

from avalanche_cetl.training import (
    ClassifyStage,
    CoupledStage,
    MergedStage,
    Recipe,
    SourceStage,
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"variant": "best"}, ValueError, "'gfi'"),
        ({"alternate": "never"}, ValueError, "iteration"),
        ({"dwa_lambda": -1}, ValueError, "dwa_lambda"),
        ({"dwa_lambda": float("nan")}, ValueError, "finite"),
        ({"loss_weights": (1, 1)}, ValueError, "three"),
        ({"loss_weights": (1, -1, 1)}, ValueError, "three"),
        ({"warmup_epochs": -1}, ValueError, "warmup"),
        ({"warmup_epochs": 0, "variant": "f"}, ValueError, "warmup"),
        ({"input_noise": 1.0}, ValueError, "input_noise"),
        ({"fixed_goal": True, "alternate": "iteration"}, ValueError, "fixed_goal"),
        ({"lr_factors": (1.0, 0.0)}, ValueError, "lr_factors"),
        ({"lr_factors": (1.0,)}, ValueError, "lr_factors"),
        ({"fixed_goal": True, "variant": "joint"}, ValueError, "fixed_goal"),
        ({"stage_epochs": (1, 0, 1)}, ValueError, "stage_epochs"),
        ({"stage_epochs": (1, 1, 2), "alternate": "iteration"}, ValueError, "epoch"),
        ({"gfi": {"samples": 3}}, TypeError, "GFISettings"),
        ({"model": nn.Linear(2, 2)}, TypeError, "CoupledModel"),
    ],
)
def test_arguments_out_of_range_are_refused_with_what_is_allowed(arguments, error, message):
    with pytest.raises(error, match=message):
        strategy(**arguments)


def test_weights_of_a_mixture_sum_to_one():
    made = Recipe.of(variant="two_step", loss_weights=(5.0, 1.0, 3.0))
    assert (made.weight("L_c"), made.weight("L_rt")) == (0.25, 0.75)
    assert made.weight("L_rs") == 5.0  # not part of the mixture


def test_losses_without_a_weight_of_their_own_count_once():
    made = Recipe.of(loss_weights=(2.0, 3.0, 4.0))
    found = [made.weight(name) for name in ("L_rs", "L_c", "L_rt", "L_own")]
    assert found == [2.0, 3.0, 4.0, 1.0]


def test_numbers_by_stage_are_those_of_the_stages_of_algorithm_1():
    made = Recipe.of("paper", stage_epochs=(2, 3, 4), lr_factors=(0.5, 0.25))
    merged = MergedStage((ClassifyStage(),))
    stages = (SourceStage(), CoupledStage(), ClassifyStage(), merged)
    assert [made.epochs(stage) for stage in stages] == [2, 3, 4, 1]
    assert [made.lr_factor(stage) for stage in stages] == [0.5, 0.25, 1.0, 1.0]


@pytest.mark.parametrize(("ratio", "epochs"), [(0.2, 1), (1.0, 1), (2.4, 2), (8.0, 8)])
def test_balanced_stages_let_stage_3_make_as_many_steps_as_stage_2(ratio, epochs):
    made = Recipe.of("paper", stage_epochs="balanced")
    assert made.epochs(ClassifyStage(), ratio) == epochs
    assert made.epochs(CoupledStage(), ratio) == made.epochs(SourceStage(), ratio) == 1
    assert Recipe.of("paper").epochs(ClassifyStage(), ratio) == 1
    assert Recipe.of("paper", alternate="iteration").stage_epochs == (1, 1, 1)


def test_a_preset_fills_what_is_not_given_and_nothing_else():
    made = Recipe.of("paper", dwa_lambda=0.0)
    assert made.dwa_lambda == 0.0 and not made.fixed_goal and made.stage_epochs == (1, 1, 1)
    assert Recipe.of("paper").warmup_epochs == 0 and Recipe.of(variant="f").warmup_epochs == 10


@pytest.mark.parametrize(
    ("arguments", "shared"),
    [({}, False), ({"alternate": "iteration"}, True), ({"variant": "joint"}, True)],
)
def test_stages_share_steps_by_iterations_and_when_merged(arguments, shared):
    assert Recipe.of("paper", **arguments).shares_steps == shared
