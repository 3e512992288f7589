import copy
import io
import warnings

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, EWCPlugin
from avalanche.training.supervised import Naive
from saved_runs import SHAPE, assert_same, make, seeded, weights

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CheckpointError,
    CheckpointPlugin,
    DecoderHints,
    FitNetsHints,
    GFIPlugin,
    GFISettings,
    ViewConsistency,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)
from avalanche_cetl.checkpoints.plain import equal

VARIANTS = ["gfi", "fi", "e", "f", "joint", "two_step"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(benchmark, tmp_path, variant):
    whole = make(tmp_path / "a", variant=variant)
    seeded()
    whole.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    for stopped_after in (1, 3):
        again = make(tmp_path / f"b{stopped_after}", variant=variant)
        seeded(99)
        file = tmp_path / "a" / f"checkpoint-{stopped_after:06}.safetensors"
        progress = load_checkpoint(again, file)
        assert (progress.rounds, progress.experiences) == (stopped_after, 0)
        again.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
        assert_same(whole, again)


@pytest.mark.parametrize(("variant", "gate"), [("gfi", 0.5), ("fi", 0.0)])
def test_a_run_in_the_kronecker_basis_is_resumed_bit_for_bit(benchmark, tmp_path, variant, gate):
    settings = GFISettings(samples=8, basis="kronecker", rank=4, threshold=gate, refresh_every=2)
    whole = make(tmp_path / "a", variant=variant, gfi=settings)
    seeded()
    whole.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    for stopped_after in (1, 2):
        again = make(tmp_path / f"b{stopped_after}", variant=variant, gfi=settings)
        seeded(99)
        load_checkpoint(again, tmp_path / "a" / f"checkpoint-{stopped_after:06}.safetensors")
        kept = {name: one.state_dict() for name, one in again.importance.items()}
        assert all(one["basis"] for one in kept.values()) and len(kept) == 3
        again.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
        assert_same(whole, again)
        mine, its = (run.allocation.state_dict() for run in (whole, again))
        assert equal(mine, its)


PLUGINS = {
    "views": lambda: [ViewConsistency(1.0)],
    "hints": lambda: [DecoderHints(0.5), FitNetsHints("hidden", weight=0.5)],
    "ewc": lambda: [EWCPlugin(0.5)],
    "gfi plugin": lambda: [GFIPlugin(0.5, samples=8, basis="diagonal")],
    "early stopping": lambda: [EarlyStoppingPlugin(2, "test_stream", "Top1_Acc_Stream")],
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_are_resumed_over_several_experiences_in_one_call(digits, tmp_path, name):
    parts = [
        transfer_benchmark(digits(32, seed=seed), digits(20, seed=9)).train_stream[0]
        for seed in (0, 1)
    ]
    test = transfer_benchmark(digits(32), digits(20, seed=9)).test_stream
    whole = make(tmp_path, plugins=PLUGINS[name](), train_epochs=2, sgd=True)
    seeded()
    whole.train(parts, eval_streams=[test])
    # Where early stopping had stopped before, there is no such file.
    files = {n: tmp_path / f"checkpoint-{n:06}.safetensors" for n in (1, 2, 3, 4)}
    there = {n: file for n, file in files.items() if name != "early stopping" or file.exists()}
    assert there
    for stopped_after, file in there.items():
        again = make(
            tmp_path / f"b{stopped_after}", plugins=PLUGINS[name](), train_epochs=2, sgd=True
        )
        progress = load_checkpoint(again, file)
        assert progress.experiences == (stopped_after - 1) // 2
        again.train(parts, eval_streams=[test])
        assert_same(whole, again)


def test_a_loop_over_experiences_starts_where_the_progress_ends(digits, tmp_path):
    parts = [
        transfer_benchmark(digits(30, seed=seed), digits(20, seed=9)).train_stream[0]
        for seed in (0, 1, 2)
    ]
    whole = make(tmp_path, train_epochs=1)
    seeded()
    for part in parts:
        whole.train(part)
    for number in (1, 2, 3):
        again = make(train_epochs=1, plugins=[CheckpointPlugin(tmp_path / "b")])
        done = load_checkpoint(again, tmp_path / f"checkpoint-{number:06}.safetensors").experiences
        assert done == number - 1
        for part in parts[done:]:
            again.train(part)
        assert_same(whole, again)


def test_a_checkpoint_saved_outside_of_train_goes_on_with_the_next_call(benchmark, tmp_path):
    whole = make()
    seeded()
    whole.train(benchmark.train_stream, eval_streams=[])
    save_checkpoint(whole, tmp_path / "one.safetensors")
    whole.train(benchmark.train_stream, eval_streams=[])
    again = make()
    progress = load_checkpoint(again, tmp_path / "one.safetensors")
    assert (progress.calls, progress.experiences, progress.rounds) == (1, 1, 0)
    again.train(benchmark.train_stream, eval_streams=[])
    assert_same(whole, again)


def test_more_rounds_than_before_are_allowed(benchmark, tmp_path):
    whole = make(tmp_path / "a", train_epochs=4)
    seeded()
    whole.train(benchmark.train_stream, eval_streams=[])
    short = make(tmp_path / "b", train_epochs=2)
    seeded()
    short.train(benchmark.train_stream, eval_streams=[])
    longer = make(tmp_path / "c", train_epochs=4)
    load_checkpoint(longer, tmp_path / "b")
    longer.train(benchmark.train_stream, eval_streams=[])
    assert_same(whole, longer)


def test_other_strategies_are_saved_between_experiences(digits, tmp_path):
    parts = [
        transfer_benchmark(digits(30, seed=seed), digits(20, seed=9)).train_stream[0]
        for seed in (0, 1, 2)
    ]

    def naive(plugin):
        torch.manual_seed(1)
        model = CICNN(3, SHAPE, width=0.05)
        return Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), 1e-2),
            train_mb_size=8,
            plugins=[plugin],
            evaluator=EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[]),
        )

    for plugin in (lambda: GFIPlugin(1.0, samples=8, basis="diagonal"), lambda: EWCPlugin(1.0)):
        whole = naive(plugin())
        seeded()
        for number, part in enumerate(parts):
            whole.train(part)
            if number == 1:
                save_checkpoint(whole, tmp_path / "two.safetensors")
        again = naive(plugin())
        assert load_checkpoint(again, tmp_path / "two.safetensors").experiences == 2
        again.train(parts[2])
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, again.model.state_dict()[name])
        assert whole.evaluator.get_all_metrics() == again.evaluator.get_all_metrics()


def test_other_data_than_in_the_checkpoint_are_refused(benchmark, digits, tmp_path):
    make(tmp_path).train(benchmark.train_stream, eval_streams=[])
    strategy = make(tmp_path / "b")
    load_checkpoint(strategy, tmp_path)
    other = transfer_benchmark(digits(30), digits(20, seed=1))
    with pytest.raises(ValueError, match="30"):
        strategy.train(other.train_stream, eval_streams=[])


def test_a_strategy_within_a_round_cannot_be_saved(benchmark, tmp_path):
    class Early(CETLPlugin):
        def after_stage(self, strategy, *args, **kwargs):
            with pytest.raises(CheckpointError, match="within a round"):
                save_checkpoint(strategy, tmp_path / "x.safetensors")

    make(plugins=[Early()], train_epochs=1).train(benchmark.train_stream, eval_streams=[])
    assert not (tmp_path / "x.safetensors").exists()


def test_a_damaged_newest_checkpoint_gives_way_to_an_older_one(benchmark, tmp_path):
    make(tmp_path).train(benchmark.train_stream, eval_streams=[])
    newest = tmp_path / "checkpoint-000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match="older"):
        assert load_checkpoint(make(tmp_path), tmp_path).rounds == 2
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        empty = tmp_path / "empty"
        empty.mkdir()
        load_checkpoint(make(tmp_path), empty)


def test_saving_changes_nothing_of_the_run(benchmark, tmp_path):
    def run(folder):
        strategy = make(folder)
        seeded()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy.train(benchmark.train_stream, eval_streams=[])
        return strategy

    saving, plain = run(tmp_path), run(None)
    assert all(torch.equal(copy.copy(p), weights(plain)[n]) for n, p in weights(saving).items())
    assert io.BytesIO(next(iter(tmp_path.iterdir())).read_bytes()).read(8) != b""


def test_a_tilde_in_a_path_is_the_home_folder(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make("~/run", train_epochs=1).train(benchmark.train_stream, eval_streams=[])
    assert (tmp_path / "run" / "checkpoint-000001.safetensors").exists()
    strategy = make(train_epochs=1)
    load_checkpoint(strategy, "~/run")
    save_checkpoint(strategy, "~/one.safetensors")
    assert (tmp_path / "one.safetensors").exists()
