import copy
import inspect

import pytest
import torch
from coupled_runs import small_coupled, snapshot, strategy
from torch import nn

from avalanche_cetl import CETLPlugin, CETLStrategy, GFISettings, Quantile, transfer_benchmark
from avalanche_cetl.training import VARIANTS, Recipe, Variant
from avalanche_cetl.training.options import Options


def make(plugins=(), **arguments):
    settings = {"train_mb_size": 8, "dwa_lambda": 1.0, **arguments}
    return strategy(small_coupled(), plugins=list(plugins), **settings)


@pytest.fixture
def transfer(digits):
    """Few rows: what is in force shows in a step or two."""
    return transfer_benchmark(digits(24), digits(3), labels_per_class=5)


def trained(strategy, stream):
    torch.manual_seed(7)
    strategy.train(stream)
    return snapshot(strategy.model)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def flipped(x):
    return x.flip(3)


#: Every option of CETLStrategy that can change: by name, values other than what make() has, and
#: options that go with it.
OPTIONS = {
    "variant": ["fi", "e", "u", "f", "joint", "direct", VARIANTS["two_step"]],
    "loss_weights": [(1.0, 2.0, 0.5), [1, 1, 3]],
    "dwa_lambda": [0.0, 30.0],
    "gfi": [
        GFISettings(samples=12, seed=3, threshold=Quantile(0.3)),
        GFISettings(samples=8, basis="kronecker", rank=4),
        GFISettings(samples=8, normalize=False),
    ],
    "alternate": ["iteration"],
    "stage_epochs": [(1, 2, 1), [2, 1, 1]],
    "lr_factors": [(1.0, 0.1), [0.5, 2.0]],
    "warmup_epochs": [2],
    "input_noise": [0.4],
    "fixed_goal": [True],
    "augment": [flipped],
    "precision": ["bfloat16"],
    "channels_last": [True],
    "accumulate": [2],
    "train_mb_size": [16],
    "train_epochs": [2],
    "eval_every": [1],
}
#: Refused when they are assigned, with the remedy.
FIXED = {"preset": "paper", "recipe": None, "peval_mode": "iteration"}
#: Objects that are the strategy's own business, or Avalanche's; the last test looks at some.
OTHERS = {
    "model", "optimizer", "criterion", "plugins", "evaluator", "device", "eval_mb_size",
    "ewc_lambda",
}  # fmt: skip


def test_every_argument_of_the_strategy_is_in_the_tables():
    assert set(inspect.signature(CETLStrategy.__init__).parameters) - {"self"} == (
        set(OPTIONS) | {"compile"} | (set(FIXED) - {"recipe"}) | OTHERS
    )


def test_options_are_the_fields_of_the_recipe():
    one = make(variant="e", loss_weights=(1, 2, 3), lr_factors=(0.5, 1.0))
    found = {n: one for n, one in vars(Options).items() if not n.startswith("_")}
    names = [n for n, one in found.items() if hasattr(type(one), "__set__")]
    own = set(Recipe.__dataclass_fields__) - {"given"}
    assert set(names) == {*own, *FIXED, "eval_every", "criterion"}
    assert all(getattr(one, name) == getattr(one.recipe, name) for name in own)


@pytest.fixture(scope="module")
def unchanged():
    found = {}

    def weights(stream, variant="gfi"):
        if variant not in found:
            found[variant] = trained(make(variant=variant), stream)
        return found[variant]

    return weights


#: Options that need not move a weight in a round of this network.
QUIET = {"channels_last", "eval_every"}
#: Options that a variant without measurements, which is quicker, does not show.
MEASURED = {"variant", "gfi", "dwa_lambda"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in OPTIONS.items()
        for number, value in enumerate(values)
    ],
)
def test_an_option_that_is_assigned_is_as_much_in_force_as_one_that_is_given(
    transfer, unchanged, name, value
):
    variant = "gfi" if name in MEASURED else "e"
    given, assigned = make(**{"variant": variant, name: value}), make(variant=variant)
    setattr(assigned, name, value)
    assert given.settings() == assigned.settings()
    before = unchanged(transfer.train_stream, variant)
    first, second = (trained(one, transfer.train_stream) for one in (given, assigned))
    assert same(first, second)
    assert given.round_losses == assigned.round_losses
    assert name in QUIET or not same(first, before)


def test_forward_functions_are_compiled_where_that_is_assigned():
    one = make()
    one.compile = "eager"  # what it does in training is tested with the engine
    assert one.networks.functions is one.engine.functions
    assert one.engine.functions.compiled == "eager"


def test_several_options_change_at_once_and_what_was_not_given_follows(transfer):
    given, assigned = make(variant="e", alternate="iteration"), make()
    assigned.configure(variant="e", alternate="iteration")
    assert not assigned.fixed_goal and assigned.stage_epochs == (1, 1, 1)
    first, second = (trained(one, transfer.train_stream) for one in (given, assigned))
    assert same(first, second)


def test_an_option_can_be_set_to_what_it_shows():
    one = make()
    before = one.recipe
    for name in one.recipe.given:
        setattr(one, name, getattr(one, name))
    assert one.recipe == before


@pytest.mark.parametrize("name", FIXED)
def test_what_cannot_change_says_so_when_it_is_assigned(name):
    one = make()
    with pytest.raises(AttributeError, match=f"{name}= when you make the strategy"):
        setattr(one, name, FIXED[name])


def test_setting_an_option_checks_the_value_as_the_constructor_does():
    one = make(variant="e")
    before = one.recipe
    wrong = {
        "lr_factors": (1.0, 0.0), "stage_epochs": (0, 1, 1), "gfi": None, "input_noise": 2,
        "precision": "float8", "accumulate": 0, "variant": "z", "loss_weights": {"L_rs": 1.0},
        "alternate": "sometimes",
    }  # fmt: skip
    wrong["gfi"] = {"samples": 8}
    for name, value in wrong.items():
        with pytest.raises((ValueError, TypeError), match=name):
            setattr(one, name, value)
        assert one.recipe is before
    with pytest.raises(ValueError, match="accumulate=2 goes with"):
        one.configure(alternate="iteration", accumulate=2)
    with pytest.raises(TypeError, match="lambda= is no option that can change"):
        one.configure(**{"lambda": 1.0})


def test_the_variant_stays_where_a_preset_has_chosen_plugins_for_it():
    one = make(preset="best", dwa_lambda=None, gfi=None)
    with pytest.raises(ValueError, match="Give variant= when you make the strategy"):
        one.variant = "gfi"
    assert one.variant.name == "direct"


class Change(CETLPlugin):
    """Sets an option after the first round."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def after_round(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_epochs == 1:
            strategy.configure(**self.options)


@pytest.mark.parametrize(
    "options",
    [{"lr_factors": (0.0001, 0.0001)}, {"dwa_lambda": 1e4}, {"input_noise": 0.9},
     {"fixed_goal": True}, {"alternate": "iteration"}, {"gfi": GFISettings(samples=4, seed=9)}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_an_option_that_changes_between_two_rounds_counts_from_the_next(transfer, options):
    variant = "gfi" if set(options) & MEASURED else "e"
    changed, kept = (
        make(plugins, variant=variant, train_epochs=2) for plugins in ([Change(**options)], [])
    )
    first, second = (trained(one, transfer.train_stream) for one in (changed, kept))
    assert not same(first, second)


@pytest.mark.parametrize("options", [{"variant": "e"}, {"precision": "bfloat16"}])
def test_what_decides_how_steps_are_made_does_not_change_within_an_experience(transfer, options):
    one = make([Change(**options)], variant="f")
    with pytest.raises(ValueError, match=f"{next(iter(options))} cannot change while"):
        one.train(transfer.train_stream)


def test_a_variant_changes_between_two_calls(transfer):
    one = make(variant="e")
    one.train(transfer.train_stream)
    one.variant = "fi"
    one.train(transfer.train_stream)
    assert {"GFI1", "GFI2", "GFI3"} <= one.importance.keys()
    assert "DWA1" in one.round_losses
    one.variant = Variant("last", VARIANTS["gfi"].stages[2:])
    assert not one.importance and one.optimizers.keys() == {"stage 1"}
    one.train(transfer.train_stream)
    assert one.round_losses.keys() == {"L_c"}


def test_an_optimizer_that_is_assigned_moves_all_stages(transfer):
    one = make()
    one.optimizer = torch.optim.SGD(one.model.parameters(), 0.0)
    before = snapshot(one.model)
    assert same(trained(one, transfer.train_stream), before)


def test_a_criterion_that_a_plugin_puts_in_its_place_is_the_one_that_trains(transfer):
    class Replace(CETLPlugin):
        def before_training(self, strategy, *args, **kwargs):
            strategy._criterion = Silent()

    one = make([Replace()], variant="e")
    one.train(transfer.train_stream)
    assert one.round_losses["L_c"] == 0


class Silent(nn.Module):
    def forward(self, outputs, labels):
        return outputs.sum() * 0


def test_a_criterion_that_is_assigned_trains_and_evaluates(transfer):
    one = make(variant="e")
    one.criterion = Silent()
    one.train(transfer.train_stream)
    one.eval(transfer.test_stream)
    assert one.round_losses["L_c"] == 0


def test_a_copy_of_a_strategy_takes_options_as_the_strategy_does(transfer):
    runs = [make(variant="f"), copy.deepcopy(make(variant="f"))]
    first, second = ([], [])
    for one, found in zip(runs, (first, second), strict=True):
        trained(one, transfer.train_stream)
        one.dwa_lambda = 0.5
        one.variant = "u"  # which shares stage 3 and the warm-up with "f"
        found.append(trained(one, transfer.train_stream))
    assert same(first[0], second[0])


def test_a_copy_made_within_a_round_has_the_loader_that_the_bar_is_shown(transfer):
    class Copy(CETLPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            self.count = len(copy.copy(strategy.dataloader))

    plugin = Copy()
    make([plugin], variant="e").train(transfer.train_stream)
    assert plugin.count > 0


def test_options_can_change_after_training_has_been_interrupted(transfer):
    class Stop(CETLPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            raise KeyboardInterrupt

    one = make([Stop()], variant="e")
    with pytest.raises(KeyboardInterrupt):
        one.train(transfer.train_stream)
    one.accumulate = 2
    assert one.engine.accumulate == 2


def test_an_option_is_not_changed_through_its_value(transfer):
    passes = [1, 1, 1]
    one = make(stage_epochs=passes)
    with pytest.raises(TypeError, match="item assignment"):
        one.loss_weights["L_rs"] = 0.0
    passes[1] = 3
    one.dwa_lambda = 2.0
    assert one.stage_epochs == (1, 1, 1) and one.loss_weights["L_rs"] == 1.0


@pytest.mark.parametrize(
    "options",
    [{"dwa_lambda": "a"}, {"lr_factors": 2.0}, {"stage_epochs": 2}, {"loss_weights": 1.0},
     {"eval_every": "x"}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_an_option_of_a_wrong_type_is_named(options):
    (name,) = options
    one = make(variant="e")
    with pytest.raises((TypeError, ValueError), match=name):
        setattr(one, name, options[name])


def test_the_rounds_between_evaluations_are_read_as_they_were_given():
    strategy = make(eval_every=2)
    assert strategy.eval_every == 2
    strategy.eval_every = 3
    assert strategy.eval_every == 3
