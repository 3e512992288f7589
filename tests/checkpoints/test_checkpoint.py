import re
import warnings
from contextlib import nullcontext

import pytest
import torch
from avalanche.training.plugins import EarlyStoppingPlugin, EWCPlugin
from coupled_runs import source_net
from saved_runs import assert_same, coupled, make, seeded, weights

from avalanche_cetl import (
    CETLPlugin,
    CheckpointError,
    CheckpointPlugin,
    DecoderHints,
    FitNetsHints,
    GFIPlugin,
    GFISettings,
    ModuleEncoder,
    ViewConsistency,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)
from avalanche_cetl.checkpoints import checkpoint
from avalanche_cetl.checkpoints.codec import equal, read_checkpoint_file
from avalanche_cetl.training import (
    ClassifyStage,
    CoupledStage,
    MergedStage,
    SourceStage,
    Variant,
)


def kronecker(**arguments):
    return GFISettings(samples=8, basis="kronecker", rank=4, refresh_every=2, **arguments)


#: Arguments of the strategy.
RUNS = {
    **{name: {"variant": name} for name in ("gfi", "fi", "e", "f", "joint", "two_step")},
    "gfi, kronecker": {"variant": "gfi", "gfi": kronecker(threshold=0.5)},
    "fi, kronecker": {"variant": "fi", "gfi": kronecker(threshold=0.0)},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(benchmark, tmp_path, name):
    whole = make(tmp_path / "a", **RUNS[name])
    seeded()
    whole.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    for stopped_after in (1, 3):
        again = make(tmp_path / f"b{stopped_after}", **RUNS[name])
        seeded(99)
        file = tmp_path / "a" / f"checkpoint-{stopped_after:06}.safetensors"
        progress = load_checkpoint(again, file)
        assert (progress.rounds, progress.experiences) == (stopped_after, 0)
        again.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
        assert_same(whole, again)
        assert equal(whole.allocation.state_dict(), again.allocation.state_dict())


PLUGINS = {
    "views": lambda: [ViewConsistency(1.0)],
    "hints": lambda: [DecoderHints(0.5), FitNetsHints(target_layer="hidden", weight=0.5)],
    "ewc": lambda: [EWCPlugin(0.5)],
    "gfi plugin": lambda: [GFIPlugin(0.5, samples=8, basis="diagonal")],
    "early stopping": lambda: [EarlyStoppingPlugin(2, "test_stream", "Top1_Acc_Stream")],
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_are_resumed_over_several_experiences_in_one_call(digits, tmp_path, name):
    parts = [digits(32), digits(32, seed=1)]
    benchmark = transfer_benchmark(parts, [digits(20, seed=9)] * 2)
    variant = "gfi" if name == "ewc" else "e"
    settings = {"train_epochs": 2, "sgd": True, "variant": variant}

    def train(strategy):
        strategy.train(benchmark.train_stream, eval_streams=[benchmark.test_stream[:1]])

    whole = make(tmp_path, plugins=PLUGINS[name](), **settings)
    seeded()
    train(whole)
    # Where early stopping had stopped before, there is no such file.
    files = sorted(tmp_path.glob("checkpoint-*"))
    assert len(files) == 4 or (name == "early stopping" and files)
    for file in files:
        again = make(tmp_path / "b" / file.stem, plugins=PLUGINS[name](), **settings)
        assert load_checkpoint(again, file).experiences == (int(file.stem[-6:]) - 1) // 2
        train(again)
        assert_same(whole, again)


def test_a_loop_over_experiences_starts_where_the_progress_ends(stream, tmp_path):
    whole = make(tmp_path, train_epochs=1)
    seeded()
    for experience in stream:
        whole.train(experience)
    for number in (1, 2):
        again = make(train_epochs=1, plugins=[CheckpointPlugin(tmp_path / "b")])
        done = load_checkpoint(again, tmp_path / f"checkpoint-{number:06}.safetensors").experiences
        assert done == number - 1
        for experience in stream[done:]:
            again.train(experience)
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
    whole, short = (make(tmp_path / str(n), train_epochs=n) for n in (4, 2))
    for strategy in (whole, short):
        seeded()
        strategy.train(benchmark.train_stream, eval_streams=[])
    longer = make(tmp_path / "c", train_epochs=4)
    load_checkpoint(longer, tmp_path / "2")
    longer.train(benchmark.train_stream, eval_streams=[])
    assert_same(whole, longer)


def test_other_data_than_in_the_checkpoint_are_refused(benchmark, digits, tmp_path):
    make(tmp_path).train(benchmark.train_stream, eval_streams=[])
    strategy = make(tmp_path / "b")
    load_checkpoint(strategy, tmp_path)
    other = transfer_benchmark(digits(30), digits(20, seed=1))
    with pytest.raises(ValueError, match="30"):
        strategy.train(other.train_stream, eval_streams=[])


def test_a_damaged_newest_checkpoint_gives_way_to_an_older_one(benchmark, tmp_path):
    make(tmp_path).train(benchmark.train_stream, eval_streams=[])
    newest = tmp_path / "checkpoint-000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match="older"):
        assert load_checkpoint(make(tmp_path), tmp_path).rounds == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(make(tmp_path), tmp_path / "empty")


def test_saving_changes_nothing_of_the_run(benchmark, tmp_path):
    runs = [make(tmp_path), make(None)]
    for strategy in runs:
        seeded()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy.train(benchmark.train_stream, eval_streams=[])
    assert_same(*runs)


def test_a_tilde_in_a_path_is_the_home_folder(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    make("~/run", train_epochs=1).train(benchmark.train_stream, eval_streams=[])
    assert (tmp_path / "run" / "checkpoint-000001.safetensors").exists()
    strategy = make(train_epochs=1)
    load_checkpoint(strategy, "~/run")
    save_checkpoint(strategy, "~/one.safetensors")
    assert (tmp_path / "one.safetensors").exists()


def test_a_checkpoint_is_little_more_than_its_tensors_and_has_nothing_of_s(benchmark, tmp_path):
    from safetensors.torch import load_file

    strategy = make(model=coupled(units=2000), train_epochs=1)
    strategy.train(benchmark.train_stream, eval_streams=[])
    save_checkpoint(strategy, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors").values()
    size = (tmp_path / "x.safetensors").stat().st_size
    assert size <= 1.1 * sum(tensor.nbytes for tensor in tensors)
    large = [p for p in strategy.model.source.parameters() if p.numel() > 100]
    assert large and not any(torch.equal(p, t) for p in large for t in tensors)


def test_a_text_log_that_was_empty_becomes_empty_again(tmp_path):
    with (tmp_path / "log.txt").open("w+") as log:
        save_checkpoint(make(log=log), tmp_path / "first.safetensors")
        log.write("a round that will run again")
        load_checkpoint(make(log=log), tmp_path / "first.safetensors")
        assert log.seek(0, 2) == 0


def test_a_text_log_is_the_same_to_the_letter(benchmark, tmp_path):
    with (tmp_path / "whole.txt").open("w+") as log:
        whole = make(tmp_path / "a", log=log)
        seeded()
        whole.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    text = (tmp_path / "whole.txt").read_text()
    # The log of a run that was killed within round 3.
    (tmp_path / "cut.txt").write_text(text[: text.index("Epoch 2 ended")])
    with (tmp_path / "cut.txt").open("a+") as log:
        again = make(tmp_path / "b", log=log)
        load_checkpoint(again, tmp_path / "a" / "checkpoint-000002.safetensors")
        again.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    assert (tmp_path / "cut.txt").read_text() == text


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda: make(model=coupled(units=9)), "another network"),
        (lambda: make(model=coupled(source_seed=5)), "source network"),
        (lambda: make(variant="e"), "variant='e' for 'gfi'"),
        (lambda: make(dwa_lambda=0.2), "dwa_lambda"),
        (lambda: make(gfi=GFISettings(samples=8, basis="kronecker")), "basis='kronecker'"),
        (lambda: make(sgd=True), "SGD"),
        (lambda: make(scheduler=False), "plugins"),
        (lambda: make(plugins=[EWCPlugin(1.0)]), "EWCPlugin"),
    ],
    ids=["network", "S", "variant", "strength", "basis", "optimizer", "scheduler", "plugins"],
)
def test_another_strategy_is_refused_and_stays_as_it_was(benchmark, tmp_path, other, told):
    saved = make(train_epochs=1)
    saved.train(benchmark.train_stream, eval_streams=[])
    save_checkpoint(saved, tmp_path / "saved.safetensors")
    strategy = other()
    before, state = weights(strategy), torch.get_rng_state()
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(strategy, tmp_path / "saved.safetensors")
    assert all(torch.equal(before[name], p) for name, p in weights(strategy).items())
    assert torch.equal(state, torch.get_rng_state())
    assert strategy.clock.train_exp_counter == 0


def staged(*stages):
    return make(variant=Variant("own", stages))


def own(stage, **attributes):
    for name, value in attributes.items():
        setattr(stage, name, value)
    return stage


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ((SourceStage(), ClassifyStage()), r"[stage 1, stage 3]"),
        ((ClassifyStage(), own(CoupledStage(), epochs=2)), r"[stage 3, stage 2 (epochs=2)]"),
        ((own(CoupledStage(), epochs=3), ClassifyStage()), r"[stage 2 (epochs=3), stage 3]"),
        (
            (own(CoupledStage(), epochs=2, lr_factor=0.1), ClassifyStage()),
            "[stage 2 (epochs=2, lr_factor=0.1), stage 3]",
        ),
        ((MergedStage((ClassifyStage(), CoupledStage())),), "[merged (stage 3, stage 2)]"),
    ],
    ids=["stages", "order", "epochs", "lr_factor", "merged"],
)
def test_other_stages_under_the_name_of_the_same_variant_are_refused(tmp_path, stages, told):
    path = tmp_path / "saved.safetensors"
    saved = own(CoupledStage(), epochs=2), ClassifyStage()
    save_checkpoint(staged(*saved), path)
    load_checkpoint(staged(*saved), path)
    wanted = (
        f"the variant 'own' has the stages {told}, in the checkpoint [stage 2 (epochs=2), stage 3]"
    )
    with pytest.raises(CheckpointError, match=re.escape(wanted)):
        load_checkpoint(staged(*stages), path)


class Fails(CETLPlugin):
    """Takes no state."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        raise RuntimeError("no state, please")


def test_a_load_that_fails_late_leaves_nothing_behind(benchmark, tmp_path):
    def coupled_run():
        return make(train_epochs=1, plugins=[GFIPlugin(0.5, samples=8), Fails()])

    saved, strategy = coupled_run(), coupled_run()
    saved.train(benchmark.train_stream, eval_streams=[])
    save_checkpoint(saved, tmp_path / "saved")
    save_checkpoint(strategy, tmp_path / "before")
    with pytest.raises(CheckpointError, match="RuntimeError: no state, please"):
        load_checkpoint(strategy, tmp_path / "saved")
    save_checkpoint(strategy, tmp_path / "after")
    assert equal(*(read_checkpoint_file(tmp_path / name) for name in ("before", "after")))


class Holds(CETLPlugin):
    """Holds anything."""

    def __init__(self, value):
        super().__init__()
        self.value = value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda: transfer_benchmark, None),
        (lambda: iter(()), r"Holds\.value is a tuple_iterator"),
        (source_net, r"Holds\.value is a network that can learn"),
    ],
    ids=["a function", "no plain data", "a network"],
)
def test_state_that_cannot_be_kept_is_named_when_saving(tmp_path, value, told):
    strategy, file = make(plugins=[Holds(value())]), tmp_path / "x.safetensors"
    if told is not None:
        with pytest.raises(CheckpointError, match=told):
            save_checkpoint(strategy, file)
        assert not file.exists()
    ignore = [] if told is None else ["Holds"]
    save_checkpoint(strategy, file, ignore=ignore)
    load_checkpoint(make(plugins=[Holds(value())]), file, ignore=ignore)


def test_a_strategy_within_a_round_cannot_be_saved(benchmark, tmp_path):
    class Early(CETLPlugin):
        def after_stage(self, strategy, *args, **kwargs):
            with pytest.raises(CheckpointError, match="within a round"):
                save_checkpoint(strategy, tmp_path / "x.safetensors")

    make(plugins=[Early()], train_epochs=1).train(benchmark.train_stream, eval_streams=[])
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("change", ["anchors", "values", "basis"])
def test_an_importance_of_another_shape_is_refused(benchmark, tmp_path, change):
    settings = kronecker()
    strategy = make(train_epochs=1, gfi=settings)
    strategy.train(benchmark.train_stream, eval_streams=[])
    one, name = strategy.importance["GFI3"], "target.module.hidden.1.weight"
    if change == "basis":
        object.__setattr__(one.basis[name], "left", one.basis[name].left[1:])
    else:
        getattr(one, change)[name] = getattr(one, change)[name][1:]
    save_checkpoint(strategy, tmp_path / "saved.safetensors")
    with pytest.raises(CheckpointError, match=f"importance of {name} has another shape"):
        load_checkpoint(make(train_epochs=1, gfi=settings), tmp_path / "saved.safetensors")


class Halved(torch.nn.Module):
    """A source network with an attribute that version 0.2 did not see."""

    def __init__(self, by=0.5):
        super().__init__()
        self.by, self.network = by, source_net()

    def forward(self, x):
        return self.by * self.network(x)


@pytest.mark.parametrize("by", [0.5, 0.25])
def test_a_source_that_answers_otherwise_is_another_one_but_for_version_0_2(
    tmp_path, by, monkeypatch
):
    def strategy(by):
        model = coupled()
        model.source = ModuleEncoder(Halved(by), "", input_shape=(1, 8, 8))
        return make(model=model)

    save_checkpoint(strategy(0.5), tmp_path / "new.safetensors")
    with monkeypatch.context() as then:
        then.setattr(checkpoint, "_origin_of_source", lambda model: model.source.fingerprint())
        save_checkpoint(strategy(0.5), tmp_path / "old.safetensors")
    load_checkpoint(strategy(by), tmp_path / "old.safetensors")
    with nullcontext() if by == 0.5 else pytest.raises(CheckpointError, match="source network"):
        load_checkpoint(strategy(by), tmp_path / "new.safetensors")
