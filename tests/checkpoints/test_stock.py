"""Avalanche's plugins, storage policies and strategies: resumed, or refused at the beginning."""

import pytest
import torch
from avalanche.training import plugins as ap
from avalanche.training import storage_policy as sp
from avalanche.training import supervised as strategies
from avalanche.training.plugins.feature_distillation import FeatureDistillationPlugin

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CheckpointError,
    CheckpointPlugin,
    CoupledModel,
    GFIPlugin,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def replay(policy):
    return ap.ReplayPlugin(policy.max_size, storage_policy=policy)


def herding(model):
    chosen = sp.HerdingSelectionStrategy(model, "features")
    return replay(sp.ParametricBuffer(20, groupby="class", selection_strategy=chosen))


PLUGINS = {
    "replay": lambda m: ap.ReplayPlugin(20),
    "replay, reservoir": lambda m: replay(sp.ReservoirSamplingBuffer(20)),
    "replay, by class": lambda m: replay(sp.ClassBalancedBuffer(23)),
    "replay, by experience": lambda m: replay(sp.ExperienceBalancedBuffer(20, False, 3)),
    "replay, parametric": lambda m: replay(sp.ParametricBuffer(20, groupby="class")),
    "replay, herding": herding,
    "LwF": lambda m: ap.LwFPlugin(),
    "MAS": lambda m: ap.MASPlugin(),
    "LFL": lambda m: ap.LFLPlugin(0.1),
    "EWC": lambda m: ap.EWCPlugin(0.1),
    "EWC online": lambda m: ap.EWCPlugin(0.1, "online", 0.5),
    "SI": lambda m: ap.SynapticIntelligencePlugin(0.1),
    "RWalk": lambda m: ap.RWalkPlugin(delta_t=2),
    "GDumb": lambda m: ap.GDumbPlugin(20),
    "A-GEM": lambda m: ap.AGEMPlugin(10, 10),
    "GFI": lambda m: GFIPlugin(0.1, samples=8, basis="diagonal"),
    "GFI kronecker": lambda m: GFIPlugin(0.1, basis="kronecker", samples=8),
    "GFI kronecker online": lambda m: GFIPlugin(0.1, "online", 0.5, basis="kronecker", samples=8),
}
CRITERION = {"criterion": torch.nn.CrossEntropyLoss()}
STRATEGIES = {
    "Cumulative": (strategies.Cumulative, CRITERION),
    "DER": (strategies.DER, {"mem_size": 20}),
    "ER_ACE": (strategies.ER_ACE, {"mem_size": 20}),
    "FromScratchTraining": (strategies.FromScratchTraining, CRITERION),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_run_with_the_plugin_ends_as_one_that_was_never_stopped(small, tmp_path, name):
    def make():
        return small.strategy(lambda model: [PLUGINS[name](model)])

    small.resumed_as_straight(make, small.benchmark(), tmp_path / "c")


@pytest.mark.parametrize("name", STRATEGIES)
def test_state_that_a_strategy_keeps_of_its_own_is_resumed(small, tmp_path, name):
    kind, arguments = STRATEGIES[name]
    small.resumed_as_straight(
        lambda: small.strategy(kind=kind, **arguments), small.benchmark(), tmp_path / "c"
    )


def test_features_of_the_old_network_are_resumed(small, tmp_path):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Linear(64, 8), torch.nn.Linear(8, 10)
            self.features = None

        def forward(self, x):
            self.features = self.body(x.flatten(1))
            return self.head(self.features)

    def make():
        return small.strategy(lambda model: [FeatureDistillationPlugin()], network=Network)

    small.resumed_as_straight(make, small.benchmark(), tmp_path / "c")


def test_the_memory_of_gem_is_kept(small, tmp_path):
    strategy = small.strategy(lambda model: [ap.GEMPlugin(10, 0.5)])
    strategy.train(small.benchmark().train_stream[0])
    save_checkpoint(strategy, tmp_path / "c")
    again = small.strategy(lambda model: [ap.GEMPlugin(10, 0.5)])
    load_checkpoint(again, tmp_path / "c")
    assert torch.equal(again.plugins[0].memory_x[0], strategy.plugins[0].memory_x[0])
    assert len(again.plugins[0].memory_y[0]) == 10


def test_a_buffer_that_two_plugins_share_is_shared_again(small, tmp_path):
    class Reads(ap.LwFPlugin):
        buffer = None

        def after_training_exp(self, strategy, **kwargs):
            super().after_training_exp(strategy, **kwargs)
            self.buffer = strategy.plugins[0].storage_policy.buffer_groups[0].buffer
            self.teacher = self.lwf.prev_model

    def make():
        return small.strategy(lambda model: [ap.ReplayPlugin(20), Reads()])

    strategy = make()
    strategy.train(small.benchmark().train_stream[0])
    save_checkpoint(strategy, tmp_path / "c")
    again = make()
    load_checkpoint(again, tmp_path / "c")
    replayed, reads = again.plugins[:2]
    assert reads.buffer is replayed.storage_policy.buffer_groups[0].buffer
    assert reads.teacher is reads.lwf.prev_model is not None


# ------------------------------------------------------------------ refused


NEVER = {
    "CoPE": lambda: ap.CoPEPlugin(p_size=10),
    "MIR": lambda: ap.MIRPlugin(10, 10, 10),
    "RAR": lambda: ap.RARPlugin(10, 10),
    "BiC": lambda: ap.BiCPlugin(10),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_plugin_that_cannot_be_kept_is_refused_before_it_has_any_state(small, tmp_path, name):
    strategy = small.strategy(lambda model: [NEVER[name]()])
    plugin = type(strategy.plugins[0]).__name__
    with pytest.raises(CheckpointError, match=f"{plugin}.*ignore"):
        save_checkpoint(strategy, tmp_path / "c")
    save_checkpoint(strategy, tmp_path / "c", ignore=[plugin])


def coupled_strategy(plugins, train_epochs=2, **arguments):
    torch.manual_seed(2)
    model = CoupledModel.build(None, CICNN(3, (1, 8, 8), width=0.02), (1, 8, 8))
    return CETLStrategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.02),
        variant="e",
        plugins=plugins,
        train_mb_size=10,
        train_epochs=train_epochs,
        evaluator=None,
        **arguments,
    )


def small_stream(digits):
    parts = [digits(20), digits(20, seed=1)]
    return transfer_benchmark(parts, [digits(10)] * 2).train_stream


class KeepsALoader(ap.LwFPlugin):
    def __init__(self):
        super().__init__()
        self.loader = torch.utils.data.DataLoader([1, 2, 3])


@pytest.mark.parametrize(
    "plugin",
    [*NEVER.values(), lambda: ap.AGEMPlugin(5, 5), KeepsALoader],
    ids=[*NEVER, "A-GEM", "own"],
)
def test_a_run_that_could_not_be_kept_is_refused_when_it_begins(digits, tmp_path, plugin):
    strategy = coupled_strategy([plugin(), CheckpointPlugin(tmp_path)])
    before = [p.clone() for p in strategy.model.parameters()]
    with pytest.raises(CheckpointError, match=type(strategy.plugins[0]).__name__):
        strategy.train(small_stream(digits))
    assert all(map(torch.equal, before, strategy.model.parameters()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["replay", "replay, by class", "LwF", "MAS"])
@pytest.mark.parametrize("stopped_after", [1, 3])
def test_checkpoints_of_every_round_are_resumed(digits, tmp_path, name, stopped_after):
    stream = small_stream(digits)
    whole = coupled_strategy([PLUGINS[name](None), CheckpointPlugin(tmp_path, keep=9)])
    torch.manual_seed(3)
    whole.train(stream)
    again = coupled_strategy([PLUGINS[name](None), CheckpointPlugin(tmp_path / "b")])
    load_checkpoint(again, tmp_path / f"checkpoint-{stopped_after:06}.safetensors")
    again.train(stream)
    mine, its = whole.model.state_dict(), again.model.state_dict()
    assert [name for name in mine if not torch.equal(mine[name], its[name])] == []
    assert whole.round_losses == again.round_losses
