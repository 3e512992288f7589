"""Checkpoints that earlier releases wrote load, and training goes on from them."""

import pytest
import torch
from stored_runs import RUNS, STORED, _coupled, _stock, resumed

from avalanche_cetl import (
    CETLStrategy,
    CheckpointError,
    GFIPlugin,
    InformationMaximization,
    SoftTargets,
    ViewConsistency,
    load_checkpoint,
)
from avalanche_cetl.checkpoints.adapters import differences, settings_of
from avalanche_cetl.checkpoints.codec import read_checkpoint_file

FILES = sorted(STORED.glob("*/*.safetensors"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_stored_checkpoint_loads_and_goes_on(file):
    strategy, progress = resumed(file.parent.name, file.stem)
    _, benchmark = RUNS[file.stem]
    stream = benchmark().train_stream
    tensors, _ = read_checkpoint_file(file)
    held = {tuple(t.shape): [] for t in tensors.values()}
    for t in tensors.values():
        held[tuple(t.shape)].append(t)
    for name, weight in strategy.model.state_dict().items():
        same = [torch.equal(weight, t) for t in held.get(tuple(weight.shape), [])]
        assert any(same), f"{name} is not that of the file"
    if isinstance(strategy, CETLStrategy):
        assert (progress.experiences, progress.rounds) == (0, 1)
        strategy.train(stream)
        assert strategy.clock.train_exp_counter == 1 and strategy.clock.train_exp_epochs == 2
    else:
        assert (progress.experiences, progress.rounds) == (1, 0)
        (plugin,) = (p for p in strategy.plugins if isinstance(p, GFIPlugin))
        assert plugin.importances.keys() == {0}
        strategy.train(stream[1])
        assert plugin.store.quadratic.importance == {} and 1 in plugin.importances
    assert all(p.isfinite().all() for p in strategy.model.parameters())


def test_every_run_has_a_file_of_version_0_2():
    assert {file.stem for file in (STORED / "0.2").iterdir()} == RUNS.keys()


def test_an_option_that_version_0_2_did_not_have_counts_as_what_that_version_did():
    # A new option needs a default that changes nothing.
    strategy = RUNS["cetl_kronecker"][0]()
    _, encoded = read_checkpoint_file(STORED / "0.2" / "cetl_kronecker.safetensors")
    its = encoded["training"]["cetl"]["settings"] | {"lr_factors": (1.0, 0.1)}
    assert list(differences(strategy, its)) == []
    its["gfi"] = its["gfi"].replace("rank=4, ", "")  # as if 0.2 had not had it
    assert settings_of(strategy)["gfi.rank"] == [4, 64]
    assert list(differences(strategy, its)) == ["gfi.rank=4 for 64"]


def test_a_setting_that_only_version_0_2_had_is_refused_where_it_was_set():
    strategy = RUNS["cetl_gfi"][0]()
    _, encoded = read_checkpoint_file(STORED / "0.2" / "cetl_gfi.safetensors")
    its = encoded["training"]["cetl"]["settings"] | {"lr_factors": (0.5, 0.2)}
    assert list(differences(strategy, its)) == []
    its["gfi"] = its["gfi"].replace("normalize_samples=False", "normalize_samples=True")
    assert list(differences(strategy, its)) == ["gfi.normalize_samples=False for True"]


def _plugins(**arguments):
    plugins = [
        SoftTargets(0.5, 2.0, rows="target"),
        InformationMaximization(0.5, prior=[0.4, 0.2, 0.2, 0.2], **arguments),
        ViewConsistency(1.0, rampup_rounds=2),
    ]
    return _coupled(plugins, variant="e", stage_epochs=(1, 1, 2))


def _diagonal(dwa_lambda=2.0, **arguments):
    plugin = GFIPlugin(dwa_lambda, samples=16, threshold=0.4, basis="diagonal", **arguments)
    return _stock(plugin)


@pytest.mark.parametrize(
    ("name", "made", "told"),
    [
        ("cetl_plugins", lambda: _plugins(balance=0.5), "balance=0.5 for 1.0"),
        ("gfi_diagonal", lambda: _diagonal(3.0), "dwa_lambda=3.0 for 2.0"),
        (
            "gfi_diagonal",
            lambda: _diagonal(likelihood="gaussian"),
            "likelihood='gaussian' for 'categorical'",
        ),
    ],
)
def test_a_setting_of_a_plugin_that_version_0_2_kept_in_its_state_is_compared(name, made, told):
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(made(), STORED / "0.2" / f"{name}.safetensors")
