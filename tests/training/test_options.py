import pytest
from coupled_runs import strategy

from avalanche_cetl.training import Recipe
from avalanche_cetl.training.options import Options


def test_options_that_are_set_later_are_used_and_checked(transfer):
    one = strategy(variant="e", warmup_epochs=3)
    one.warmup_epochs, one.train_epochs = 0, 2
    one.train(transfer.train_stream)
    assert one.recipe.warmup_epochs == 0 and one.clock.train_exp_epochs == 2
    with pytest.raises(ValueError, match="input_noise=2"):
        one.input_noise = 2
    one.dwa_lambda = 0.5
    assert one.allocation.strength == 0.5


def test_options_are_the_fields_of_the_recipe():
    one = strategy(variant="e", loss_weights=(1, 2, 3), lr_factors=(0.5, 1.0))
    names = [name for name in vars(Options) if not name.startswith("_")]
    assert set(names) == set(Recipe.__dataclass_fields__)
    assert all(getattr(one, name) is getattr(one.recipe, name) for name in names)


def test_setting_an_option_checks_the_value_as_the_constructor_does():
    one = strategy(variant="e")
    before = one.recipe
    for name, value in (("lr_factors", (1.0, 0.0)), ("stage_epochs", (0, 1, 1)), ("gfi", None)):
        with pytest.raises((ValueError, TypeError), match=name):
            setattr(one, name, value)
        assert one.recipe is before
