"""Checkpoints that earlier releases wrote load, and training goes on from them."""

import pytest
import torch
from stored_runs import RUNS, STORED, resumed

from avalanche_cetl import CETLStrategy, GFIPlugin
from avalanche_cetl.checkpoints.file import read_checkpoint_file
from avalanche_cetl.checkpoints.settings import (
    EARLIER,
    UNKNOWN,
    strategy_settings,
    strategy_settings_of_0_2,
)

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
    # A new option needs a default that changes nothing, or a line in EARLIER.
    strategy = RUNS["cetl_kronecker"][0]()
    mine = strategy_settings(strategy)
    _, packed = read_checkpoint_file(STORED / "0.2" / "cetl_kronecker.safetensors")
    its = strategy_settings_of_0_2(packed["training"]["cetl"]["settings"], mine)
    for name in mine.keys() - its.keys():
        known = EARLIER.get(f"CETLStrategy.{name}", mine[name].default)
        assert known not in (None, UNKNOWN), name
