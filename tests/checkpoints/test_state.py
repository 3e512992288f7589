from dataclasses import replace

import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from saved_runs import coupled, make, weights

from avalanche_cetl import CheckpointError, GFISettings, load_checkpoint, save_checkpoint


@pytest.fixture
def saved(benchmark, tmp_path):
    strategy = make(train_epochs=1)
    strategy.train(benchmark.train_stream, eval_streams=[])
    save_checkpoint(strategy, tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda: make(model=coupled(width=0.1)), "another network"),
        (lambda: make(model=coupled(source_seed=5)), "fingerprint"),
        (lambda: make(variant="e"), "variant='e' for 'gfi'"),
        (lambda: make(dwa_lambda=0.2), "dwa_lambda"),
        (lambda: make(gfi=GFISettings(samples=8, basis="kronecker")), "basis='kronecker'"),
        (lambda: make(sgd=True), "SGD"),
        (lambda: make(scheduler=False), "plugins"),
        (lambda: make(plugins=[EWCPlugin(1.0)]), "EWCPlugin"),
    ],
)
def test_another_strategy_is_refused_and_stays_as_it_was(saved, other, told):
    strategy = other()
    before = weights(strategy)
    state = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(strategy, saved)
    assert all(torch.equal(before[name], p) for name, p in weights(strategy).items())
    assert torch.equal(state, torch.get_rng_state())
    assert strategy.clock.train_exp_counter == 0


@pytest.mark.parametrize("change", ["anchor", "value", "direction"])
def test_an_importance_of_another_shape_is_refused(benchmark, tmp_path, change):
    settings = GFISettings(samples=8, basis="kronecker", rank=4)
    strategy = make(train_epochs=1, gfi=settings)
    strategy.train(benchmark.train_stream, eval_streams=[])
    one, name = strategy.importance["GFI3"], "target.module.hidden.1.weight"
    if change == "anchor":
        one.anchors[name] = one.anchors[name][1:]
    elif change == "value":
        one.values[name] = one.values[name][1:]
    else:
        layer = one.basis[name]
        one.basis = type(one.basis)({**one.basis, name: replace(layer, left=layer.left[1:])})
    save_checkpoint(strategy, tmp_path / "saved.safetensors")
    with pytest.raises(CheckpointError, match=f"importance of {name} has another shape"):
        load_checkpoint(make(train_epochs=1, gfi=settings), tmp_path / "saved.safetensors")
