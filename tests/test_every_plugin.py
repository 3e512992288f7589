"""Every plugin goes through the same: saved, loaded, refused, copied, two experiences, wrapped."""

import copy
import inspect
import io
import pickle
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from avalanche.training import plugins as stock
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from coupled_runs import SHAPE, coupled
from torch import nn

import avalanche_cetl.plugins
from avalanche_cetl import (
    CETLStrategy,
    CheckpointError,
    DecoderHints,
    FitNetsHints,
    GFIPlugin,
    GFISettings,
    InformationMaximization,
    MinimumClassConfusion,
    Quantile,
    SoftTargets,
    ViewConsistency,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)
from avalanche_cetl.plugins import History

sys.path.insert(0, str(Path(__file__).parent))


class Row(NamedTuple):
    """A plugin: how it is made, and for each argument another value."""

    kind: Any
    given: dict[str, Any]
    others: dict[str, Any]
    coupled: bool = False

    def make(self, **changed):
        return self.kind(**(self.given | changed))


#: The arguments of every plugin of this package, each with another value than the row has.
OURS = {
    "gfi": Row(
        GFIPlugin,
        {"dwa_lambda": 3.0, "samples": 16, "basis": "diagonal"},
        {
            "dwa_lambda": 50.0, "mode": ("online", {"decay_factor": 0.5}),
            "penalty": "loss", "basis": "kronecker", "threshold": Quantile(0.3),
            "probability": 0.5, "estimator": "rank", "fisher": "empirical",
            "likelihood": ("bernoulli", {"output": 0}), "output": 0, "samples": 8,
            "normalize": False, "seed": 5, "unseen": 0.5,
        },
    ),
    "gfi by default": Row(
        GFIPlugin,
        {"samples": 16, "damping": 0.1},
        {"fisher": "sampled", "unseen": 1.0, "damping": 0.0},
    ),
    "gfi online": Row(
        GFIPlugin,
        {"dwa_lambda": 3.0, "mode": "online", "decay_factor": 0.5, "samples": 16},
        {"decay_factor": 0.9, "threshold": 0.1, "keep_importance_data": True},
    ),
    "gfi kronecker": Row(
        GFIPlugin,
        {"dwa_lambda": 3.0, "basis": "kronecker", "rank": 8, "samples": 16},
        {"dwa_lambda": 50.0, "rank": 4, "penalty": "loss", "threshold": 0.5, "basis": "diagonal"},
    ),
    "soft targets": Row(
        SoftTargets,
        {"temperature": 2.0, "weight": 0.5, "rows": "target"},
        {"temperature": 3.0, "weight": 1.0, "rows": "labelled", "head": "probe", "anneal": True},
        coupled=True,
    ),
    "decoder hints": Row(DecoderHints, {"weight": 0.5}, {"weight": 1.0}, coupled=True),
    "fitnets": Row(
        FitNetsHints,
        {"target_layer": "hidden.1", "weight": 0.5},
        {
            "target_layer": "hidden.0", "source_layer": "1", "weight": 1.0, "rows": "labelled",
        },
        coupled=True,
    ),
    "views": Row(
        ViewConsistency,
        {"weight": 1.0, "prior": [0.5, 0.2, 0.3]},
        {
            "weight": 2.0, "decay": 0.5, "threshold": 0.5, "balance": 0.5, "rampup_rounds": 3,
            "rows": "unlabelled", "prior": None,
        },
        coupled=True,
    ),
    "information": Row(
        InformationMaximization,
        {"weight": 1.0, "prior": [0.5, 0.2, 0.3]},
        {
            "weight": 2.0, "balance": 0.5, "temperature": 2.0, "rampup_rounds": 3,
            "rows": "target", "prior": [0.4, 0.3, 0.3],
        },
        coupled=True,
    ),
    "confusion": Row(
        MinimumClassConfusion,
        {"weight": 1.0, "prior": [0.5, 0.2, 0.3]},
        {
            "weight": 2.0, "temperature": 1.0, "rampup_rounds": 3, "rows": "target",
            "prior": [0.4, 0.3, 0.3],
        },
        coupled=True,
    ),
    "history": Row(History, {}, {}),
}  # fmt: skip
#: Avalanche's, beside which a run is saved.
STOCK = {
    "ewc": Row(stock.EWCPlugin, {"ewc_lambda": 1.0}, {"ewc_lambda": 2.0}),
    "ewc online": Row(
        stock.EWCPlugin,
        {"ewc_lambda": 1.0, "mode": "online", "decay_factor": 0.5},
        {"decay_factor": 0.9},
    ),
    "lwf": Row(
        stock.LwFPlugin, {"alpha": 1.0, "temperature": 2.0}, {"alpha": 2.0, "temperature": 1.0}
    ),
    "si": Row(
        stock.SynapticIntelligencePlugin, {"si_lambda": 0.1}, {"si_lambda": 1.0, "eps": 1e-2}
    ),
    "mas": Row(stock.MASPlugin, {"lambda_reg": 1.0}, {"lambda_reg": 2.0, "alpha": 0.1}),
    "early stopping": Row(
        stock.EarlyStoppingPlugin,
        {"patience": 3, "val_stream_name": "train_stream"},
        {"patience": 5, "mode": "min", "margin": 0.1},
    ),
    "rwalk": Row(
        stock.RWalkPlugin,
        {"ewc_lambda": 1e-6, "delta_t": 1},
        {"ewc_lambda": 1e-5, "delta_t": 2},
    ),
    "replay": Row(stock.ReplayPlugin, {"mem_size": 8}, {"mem_size": 12, "batch_size_mem": 4}),
    "agem": Row(
        stock.AGEMPlugin,
        {"patterns_per_experience": 8, "sample_size": 8},
        {"patterns_per_experience": 6, "sample_size": 4},
    ),
}
ROWS = OURS | STOCK


class Net(nn.Sequential):
    """A network that Avalanche's plugins can read features of."""

    def __init__(self):
        super().__init__(
            nn.Flatten(), nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 3)
        )

    def get_features(self, x):
        return self[1](self[0](x))


def strategy_of(row, plugin):
    torch.manual_seed(1)
    if row.coupled:
        model = coupled()
        kind, options = CETLStrategy, {"variant": "e", "input_noise": 0.1}
    else:
        model, kind, options = Net(), Naive, {}
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05),
        train_mb_size=12,
        plugins=[plugin],
        evaluator=EvaluationPlugin(loggers=[]),
        **options,
    )


@pytest.fixture(scope="module")
def stream():
    """Two experiences; for a coupled network with few labels."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(24, *SHAPE, generator=generator), torch.arange(24) % 3
    parts = [(images, labels), (1 - images, labels)]
    few = transfer_benchmark(parts, parts, labels_per_class=6).train_stream
    return {True: few, False: transfer_benchmark(parts, parts).train_stream}


def weights(strategy):
    return {name: w.clone() for name, w in strategy.model.state_dict().items()}


def trained(strategy, stream, number):
    torch.manual_seed(4)
    strategy.train(stream[isinstance(strategy, CETLStrategy)][number])
    return weights(strategy)


@pytest.fixture(scope="module")
def straight(stream, tmp_path_factory):
    """By row: the checkpoint after the first experience, and the weights after the second."""
    found = {}

    def run(name):
        if name not in found:
            strategy = strategy_of(ROWS[name], ROWS[name].make())
            trained(strategy, stream, 0)
            file = tmp_path_factory.mktemp("saved") / "c.safetensors"
            save_checkpoint(strategy, file)
            found[name] = file, trained(strategy, stream, 1)
        return found[name]

    return run


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_table_has_every_plugin_of_the_package_and_every_argument():
    kinds = {row.kind for row in OURS.values()}
    public = {vars(avalanche_cetl.plugins)[name] for name in avalanche_cetl.plugins.__all__}
    assert {one for one in public if hasattr(one, "before_training_exp")} - kinds <= {
        avalanche_cetl.plugins.Progress,  # keeps a function, and no state
        avalanche_cetl.plugins.CETLPlugin, avalanche_cetl.plugins.LossPlugin,
        avalanche_cetl.plugins.DistillationPlugin,
    }  # fmt: skip
    for kind in kinds:
        rows = [row for row in OURS.values() if row.kind is kind]
        looked_at = set().union(*(row.others for row in rows))
        own = set(inspect.signature(kind).parameters) - {"source", "ewc_lambda"}
        assert own == looked_at, kind


@pytest.mark.parametrize("name", ROWS)
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(stream, straight, name):
    file, end = straight(name)
    resumed = strategy_of(ROWS[name], ROWS[name].make())
    load_checkpoint(resumed, file)
    assert_same(trained(resumed, stream, 1), end)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, one) for name, row in ROWS.items() for one in row.others]
)
def test_another_setting_than_the_checkpoint_has_is_refused_by_name(straight, name, argument):
    file, _ = straight(name)
    row, value, more = ROWS[name], ROWS[name].others[argument], {}
    if isinstance(value, tuple):
        value, more = value
    strategy = strategy_of(row, row.make(**{argument: value}, **more))
    before = weights(strategy)
    with pytest.raises(CheckpointError, match=rf"{row.kind.__name__}\.(\w+\.)?{argument}="):
        load_checkpoint(strategy, file)
    assert_same(weights(strategy), before)
    assert strategy.clock.train_exp_counter == 0


@pytest.mark.parametrize("name", OURS)
def test_every_argument_can_be_read_by_its_name(name):
    row = OURS[name]
    plugin = row.make()
    for argument, value in row.given.items():
        found = getattr(plugin, argument)
        assert found == value or argument == "prior"
    for argument in row.others:
        getattr(plugin, argument)


def pickled(plugin):
    return pickle.load(io.BytesIO(pickle.dumps(plugin)))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", OURS)
def test_a_copy_trains_as_the_plugin_itself(stream, straight, name, copied):
    row = OURS[name]
    _, end = straight(name)
    strategy = strategy_of(row, copied(row.make()))
    trained(strategy, stream, 0)
    place = next(i for i, p in enumerate(strategy.plugins) if type(p) is row.kind)
    strategy.plugins[place] = copied(strategy.plugins[place])
    assert_same(trained(strategy, stream, 1), end)


@pytest.mark.parametrize("name", OURS)
def test_a_part_that_is_wrapped_between_two_experiences_trains_as_before(stream, straight, name):
    row = OURS[name]
    _, end = straight(name)
    strategy = strategy_of(row, row.make())
    trained(strategy, stream, 0)
    if row.coupled:
        network = strategy.model.target.module
        network.hidden = nn.DataParallel(network.hidden)
    else:
        strategy.model[1] = nn.DataParallel(strategy.model[1])
    try:
        found = trained(strategy, stream, 1)
    except ValueError as refused:
        # A plugin that was given the name of a layer.
        assert name == "fitnets" and "target_layer='hidden.1'" in str(refused)
        return
    assert [n for n, w in zip(end, found.values(), strict=True) if not torch.equal(w, end[n])] == []


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(2)])
def test_numbers_of_numpy_are_the_same_setting_in_a_checkpoint(tmp_path, stream, number):
    row = STOCK["ewc"]
    strategy = strategy_of(row, row.make(ewc_lambda=number))
    trained(strategy, stream, 0)
    save_checkpoint(strategy, tmp_path / "c.safetensors")
    load_checkpoint(strategy_of(row, row.make(ewc_lambda=number)), tmp_path / "c.safetensors")


def test_a_checkpoint_with_importances_of_a_wrapped_part_loads(tmp_path, stream):
    def make():
        row = OURS["history"]._replace(coupled=True)
        strategy = strategy_of(row, row.make())
        strategy.configure(variant="fi", gfi=GFISettings(samples=8), dwa_lambda=1.0)
        network = strategy.model.target.module
        network.hidden = nn.DataParallel(network.hidden)
        return strategy

    saved = make()
    trained(saved, stream, 0)
    save_checkpoint(saved, tmp_path / "c.safetensors")
    resumed = make()
    load_checkpoint(resumed, tmp_path / "c.safetensors")
    assert resumed.importance.keys() == saved.importance.keys() != set()
    assert_same(trained(saved, stream, 1), trained(resumed, stream, 1))
