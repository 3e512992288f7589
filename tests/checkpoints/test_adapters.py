"""Avalanche's plugins, storage policies and strategies: resumed, or refused at the beginning."""

import pytest
import torch
from avalanche.training import plugins as ap
from avalanche.training import storage_policy as sp
from avalanche.training import supervised as strategies
from avalanche.training.plugins.feature_distillation import FeatureDistillationPlugin
from saved_runs import assert_resumed_as_straight, assert_same, make, make_stock, three_experiences

from avalanche_cetl import (
    CheckpointError,
    CheckpointPlugin,
    GFIPlugin,
    load_checkpoint,
    save_checkpoint,
)
from avalanche_cetl.checkpoints import adapters, register_state_adapter
from avalanche_cetl.checkpoints.adapters import differences, settings_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Features(torch.nn.Module):
    """A network that keeps its latest features."""

    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(64, 8), torch.nn.Linear(8, 10)
        self.features = None

    def forward(self, x):
        self.features = self.body(x.flatten(1))
        return self.head(self.features)


def replay(policy):
    return lambda model: [ap.ReplayPlugin(policy(model).max_size, storage_policy=policy(model))]


def herding(model):
    chosen = sp.HerdingSelectionStrategy(model, "features")
    return sp.ParametricBuffer(20, groupby="class", selection_strategy=chosen)


CRITERION = {"criterion": torch.nn.CrossEntropyLoss()}
#: Arguments of the strategy: a row for each plugin and strategy of Avalanche that has state, other
#: than the plugins of test_every_plugin.py.
RUNS = {
    "replay": {"plugins": lambda m: [ap.ReplayPlugin(20)]},
    "replay, reservoir": {"plugins": replay(lambda m: sp.ReservoirSamplingBuffer(20))},
    "replay, by class": {"plugins": replay(lambda m: sp.ClassBalancedBuffer(23))},
    "replay, by experience": {
        "plugins": replay(lambda m: sp.ExperienceBalancedBuffer(20, False, 3))
    },
    "replay, parametric": {"plugins": replay(lambda m: sp.ParametricBuffer(20, groupby="class"))},
    "replay, herding": {"plugins": replay(herding)},
    "LwF": {"plugins": lambda m: [ap.LwFPlugin()]},
    "MAS": {"plugins": lambda m: [ap.MASPlugin()]},
    "LFL": {"plugins": lambda m: [ap.LFLPlugin(0.1)]},
    "GDumb": {"plugins": lambda m: [ap.GDumbPlugin(20)]},
    "features": {"plugins": lambda m: [FeatureDistillationPlugin()], "network": Features},
    "Cumulative": {"kind": strategies.Cumulative, **CRITERION},
    "DER": {"kind": strategies.DER, "mem_size": 20},
    "ER_ACE": {"kind": strategies.ER_ACE, "mem_size": 20},
    "FromScratchTraining": {"kind": strategies.FromScratchTraining, **CRITERION},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_as_one_that_was_never_stopped(tmp_path, name):
    assert_resumed_as_straight(
        lambda: make_stock(**RUNS[name]), three_experiences(), tmp_path / "c"
    )


def plugins_of(name):
    return RUNS[name]["plugins"](None)


@pytest.mark.parametrize("name", ["replay", "replay, by class", "LwF", "MAS"])
def test_checkpoints_of_every_round_are_resumed(stream, tmp_path, name):
    settings = {"variant": "e", "train_epochs": 2, "eval_every": -1}
    whole = make(tmp_path, plugins=plugins_of(name), **settings)
    torch.manual_seed(3)
    whole.train(stream)
    for stopped_after in (1, 3):
        again = make(plugins=plugins_of(name), **settings)
        load_checkpoint(again, tmp_path / f"checkpoint-{stopped_after:06}.safetensors")
        again.train(stream)
        assert_same(whole, again)


def saved_and_loaded(plugins, path):
    strategy, again = (make_stock(lambda model: plugins()) for _ in range(2))
    strategy.train(three_experiences().train_stream[0])
    save_checkpoint(strategy, path)
    load_checkpoint(again, path)
    return strategy.plugins, again.plugins


def test_the_memory_of_gem_is_kept(tmp_path):
    (gem, *_), (again, *_) = saved_and_loaded(lambda: [ap.GEMPlugin(10, 0.5)], tmp_path / "c")
    assert torch.equal(again.memory_x[0], gem.memory_x[0]) and len(again.memory_y[0]) == 10


class Reads(ap.LwFPlugin):
    buffer = None

    def after_training_exp(self, strategy, **kwargs):
        super().after_training_exp(strategy, **kwargs)
        self.buffer = strategy.plugins[0].storage_policy.buffer_groups[0].buffer
        self.teacher = self.lwf.prev_model


def test_a_buffer_that_two_plugins_share_is_shared_again(tmp_path):
    _, (replayed, reads, *_) = saved_and_loaded(
        lambda: [ap.ReplayPlugin(20), Reads()], tmp_path / "c"
    )
    assert reads.buffer is replayed.storage_policy.buffer_groups[0].buffer
    assert reads.teacher is reads.lwf.prev_model is not None


# ------------------------------------------------------------------ adapters of others


class Counts(ap.LwFPlugin):
    """Holds what a checkpoint does not keep."""

    def __init__(self):
        super().__init__()
        self.counted = iter(range(9))


def load_counted(plugin, state):
    plugin.counted = iter(range(state["left"], 9))


def test_an_adapter_keeps_objects_of_its_class_and_of_those_derived_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    register_state_adapter(
        Counts, lambda plugin: {"left": 9 - plugin.counted.__length_hint__()}, load_counted
    )
    derived = type("Derived", (Counts,), {})
    (counts, *_), (again, *_) = saved_and_loaded(lambda: [derived()], tmp_path / "c")
    next(counts.counted)
    save_checkpoint(make_stock(lambda model: [counts]), tmp_path / "c")
    load_checkpoint(make_stock(lambda model: [again]), tmp_path / "c")
    assert list(again.counted) == list(range(1, 9))


def test_an_adapter_stands_for_a_refusal(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    register_state_adapter(ap.MIRPlugin, lambda plugin: {}, lambda plugin, state: None)
    save_checkpoint(make_stock(lambda model: [ap.MIRPlugin(10, 10, 10)]), tmp_path / "c")


@pytest.mark.parametrize("arguments", [("Counts", len, len), (Counts, None, len)], ids=str)
def test_an_adapter_needs_a_class_and_two_functions(arguments):
    with pytest.raises(TypeError, match="state_dict and load_state_dict"):
        register_state_adapter(*arguments)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("plugin", "other", "told"),
    [
        (ap.MASPlugin(lambda_reg=1.0), ap.MASPlugin(lambda_reg=2.0), ["lambda_reg=2.0 for 1.0"]),
        (ap.LwFPlugin(1.0, 2.0), ap.LwFPlugin(1.0, 3.0), ["lwf.temperature=3.0 for 2.0"]),
        (ap.EWCPlugin(1), ap.EWCPlugin(1.0), []),
        (ap.ReplayPlugin(20), ap.ReplayPlugin(30), ["mem_size=30 for 20"]),
        (GFIPlugin(), GFIPlugin(threshold=0.2), ["threshold=0.2 for 0.0"]),
    ],
    ids=["renamed", "plain", "numbers", "a part", "ours"],
)
def test_settings_that_differ_are_named(plugin, other, told):
    found = list(differences(other, settings_of(plugin)))
    assert set(found) >= set(told) and bool(found) == bool(told)
    assert list(differences(plugin, settings_of(plugin))) == []


def test_an_option_that_one_of_two_versions_does_not_have_counts_as_its_default():
    plugin, saved = ap.EWCPlugin(1.0), settings_of(ap.EWCPlugin(1.0))
    assert saved.pop("mode") == ["separate", "separate"] and list(differences(plugin, saved)) == []
    saved |= {"new": [1, 1], "newer": [2, 1], "given": [3]}
    assert list(differences(plugin, saved)) == ["newer=1 for 2", "given=nothing for 3"]


# ------------------------------------------------------------------ refused


NEVER = {
    "CoPE": lambda: ap.CoPEPlugin(p_size=10),
    "MIR": lambda: ap.MIRPlugin(10, 10, 10),
    "RAR": lambda: ap.RARPlugin(10, 10),
    "BiC": lambda: ap.BiCPlugin(10),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_plugin_that_cannot_be_kept_is_refused_before_it_has_any_state(tmp_path, name):
    strategy = make_stock(lambda model: [NEVER[name]()])
    plugin = type(strategy.plugins[0]).__name__
    with pytest.raises(CheckpointError, match=f"{plugin}.*ignore"):
        save_checkpoint(strategy, tmp_path / "c")
    save_checkpoint(strategy, tmp_path / "c", ignore=[plugin])


class KeepsALoader(ap.LwFPlugin):
    def __init__(self):
        super().__init__()
        self.loader = torch.utils.data.DataLoader([1, 2, 3])


@pytest.mark.parametrize(
    "plugin",
    [*NEVER.values(), lambda: ap.AGEMPlugin(5, 5), KeepsALoader],
    ids=[*NEVER, "A-GEM", "own"],
)
def test_a_run_that_could_not_be_kept_is_refused_when_it_begins(stream, tmp_path, plugin):
    strategy = make(plugins=[plugin(), CheckpointPlugin(tmp_path)], variant="e")
    before = [p.clone() for p in strategy.model.parameters()]
    with pytest.raises(CheckpointError, match=type(strategy.plugins[0]).__name__):
        strategy.train(stream)
    assert all(map(torch.equal, before, strategy.model.parameters()))
    assert list(tmp_path.iterdir()) == []
