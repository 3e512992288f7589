import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from coupled_runs import coupled, strategy
from torch import nn

import avalanche_cetl.plugins
from avalanche_cetl import CETLPlugin, DecoderHints, ViewConsistency
from avalanche_cetl.plugins import Batch, training_of
from avalanche_cetl.plugins.base import names_of
from avalanche_cetl.training import Stage


def test_names_of_losses_are_collected_once_from_plugins_that_record_any():
    plugins = [SupervisedPlugin(), DecoderHints(), ViewConsistency(), DecoderHints(0.5)]
    assert names_of(plugins) == ("L_hint", "L_view", "L_balance")


def stock(**arguments):
    model = nn.Linear(2, 2)
    return Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), evaluator=None, **arguments
    )


def test_a_strategy_with_stages_is_read_itself():
    run = strategy(coupled(source=None))
    assert training_of(run) is run
    assert run.source is None and run.alone and run.coupled is None


def test_a_stock_strategy_is_read_as_one_that_is_always_in_stage_3():
    found = training_of(stock())
    assert not found.has_stages and found.stage is Stage.CLASSIFY and found.alone
    assert found.source is None and found.coupled is None
    found.announce(["L_own"])
    found.record_loss("L_own", torch.ones(()), torch.rand(2, 2))
    assert found.round_losses == {} and found.batch_of("target") is None


def test_a_stock_strategy_has_no_target_rows_of_its_own():
    with pytest.raises(TypeError, match="Naive does not tell target rows"):
        training_of(stock()).labelled_features(None)


def test_a_plugin_listens_to_nothing_by_default():
    plugin = CETLPlugin()
    calls = (plugin.before_stage, plugin.after_stage, plugin.after_step, plugin.after_round)
    assert all(call(stock()) is None for call in calls)
    assert plugin.fits(nn.Linear(1, 1)) and plugin.names == ()


@pytest.mark.parametrize("name", ["CoupledStep", "LossRows"])
def test_earlier_names_of_a_batch_are_read_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match=f"{name} is called Batch"):
        assert getattr(avalanche_cetl.plugins, name) is Batch
    with pytest.raises(AttributeError, match="no attribute 'Rest'"):
        avalanche_cetl.plugins.Rest  # noqa: B018
