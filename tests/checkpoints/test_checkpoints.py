import copy
import io
import random
import warnings

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
)
from avalanche.training.supervised import Naive

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CETLStrategy,
    CheckpointError,
    CheckpointPlugin,
    CoupledModel,
    DecoderHints,
    FitNetsHints,
    GFIPlugin,
    GFISettings,
    ModuleEncoder,
    ViewConsistency,
    cetl_metrics,
    gfi_metrics,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)

SHAPE = (1, 8, 8)
VARIANTS = ["gfi", "fi", "e", "f", "joint", "two_step"]


def source_net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )


def coupled(seed=1, width=0.05, source_seed=0):
    torch.manual_seed(seed)
    target = CICNN(3, SHAPE, width=width, dropout=0.2)
    encoder = ModuleEncoder(source_net(source_seed), input_shape=SHAPE)
    return CoupledModel.build(encoder, target, SHAPE)


def noisy(x):
    return x + 0.05 * torch.randn_like(x)


def make(folder=None, model=None, plugins=(), sgd=False, log=None, scheduler=True, **arguments):
    model = coupled() if model is None else model
    parameters = model.parameters()
    if sgd:
        optimizer = torch.optim.SGD(parameters, 0.02, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(parameters, 1e-2)
    plugins = list(plugins)
    if scheduler:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        plugins.append(LRSchedulerPlugin(schedule))
    if folder is not None:
        plugins.append(CheckpointPlugin(folder, keep=100))
    loggers = [TextLogger(log)] if log is not None else []
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, stream=True),
        loss_metrics(epoch=True),
        forgetting_metrics(experience=True),
        cetl_metrics(images=2),
        gfi_metrics(),
        loggers=loggers,
    )
    settings = {
        "train_mb_size": 8,
        "train_epochs": 3,
        "eval_mb_size": 32,
        "eval_every": 1,
        "warmup_epochs": 1,
        "gfi": GFISettings(samples=8),
        "dwa_lambda": 0.1,
        "input_noise": 0.2,
        "augment": noisy,
        **arguments,
    }
    return CETLStrategy(
        model=model, optimizer=optimizer, plugins=plugins, evaluator=evaluator, **settings
    )


def weights(strategy):
    return {name: p.detach().clone() for name, p in strategy.model.state_dict().items()}


def assert_same(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    mine, its = one.evaluator.get_all_metrics(), other.evaluator.get_all_metrics()
    assert mine.keys() == its.keys()
    for name, (xs, values) in mine.items():
        if "Reconstructions" not in name:
            assert (xs, values) == its[name], name
    assert one.round_losses == other.round_losses
    assert vars(one.clock) == vars(other.clock)


@pytest.fixture
def benchmark(digits):
    return transfer_benchmark(digits(40), digits(20, seed=1), labels_per_class=5)


def seeded(seed=3):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


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


PLUGINS = {
    "views": lambda: [ViewConsistency(1.0)],
    "hints": lambda: [DecoderHints(0.5), FitNetsHints("hidden", weight=0.5)],
    "ewc": lambda: [EWCPlugin(0.5)],
    "gfi plugin": lambda: [GFIPlugin(0.5, samples=8)],
    "early stopping": lambda: [EarlyStoppingPlugin(2, "test_stream", "Top1_Acc_Stream")],
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_go_on_over_several_experiences_in_one_call(digits, tmp_path, name):
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


def test_a_loop_over_experiences_starts_where_the_checkpoint_says(digits, tmp_path):
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


def test_saved_outside_of_train_it_goes_on_with_the_next_call(benchmark, tmp_path):
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

    for plugin in (lambda: GFIPlugin(1.0, samples=8), lambda: EWCPlugin(1.0)):
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


# ------------------------------------------------------------------ what does not fit


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


def test_other_data_than_in_the_checkpoint_are_refused(benchmark, digits, tmp_path):
    make(tmp_path).train(benchmark.train_stream, eval_streams=[])
    strategy = make(tmp_path / "b")
    load_checkpoint(strategy, tmp_path)
    other = transfer_benchmark(digits(30), digits(20, seed=1))
    with pytest.raises(ValueError, match="30"):
        strategy.train(other.train_stream, eval_streams=[])


def test_within_a_round_there_is_nothing_whole_to_save(benchmark, tmp_path):
    class Early(CETLPlugin):
        def after_stage(self, strategy, *args, **kwargs):
            with pytest.raises(CheckpointError, match="within a round"):
                save_checkpoint(strategy, tmp_path / "x.safetensors")

    make(plugins=[Early()], train_epochs=1).train(benchmark.train_stream, eval_streams=[])
    assert not (tmp_path / "x.safetensors").exists()


def test_state_that_cannot_be_kept_is_named_when_saving(benchmark, tmp_path):
    class Keeps(CETLPlugin):
        def __init__(self):
            super().__init__()
            self.benchmark = benchmark

    strategy = make(plugins=[Keeps()])
    with pytest.raises(CheckpointError, match=r"Keeps\.benchmark"):
        save_checkpoint(strategy, tmp_path / "x.safetensors")
    save_checkpoint(strategy, tmp_path / "x.safetensors", ignore=["Keeps"])
    again = make(plugins=[Keeps()])
    load_checkpoint(again, tmp_path / "x.safetensors", ignore=["Keeps"])


def test_a_network_that_learns_beside_the_strategys_is_named_when_saving(benchmark, tmp_path):
    class Learns(CETLPlugin):
        def __init__(self):
            super().__init__()
            self.other = source_net()

    with pytest.raises(CheckpointError, match=r"Learns\.other is a network that can learn"):
        save_checkpoint(make(plugins=[Learns()]), tmp_path / "x.safetensors")


# ------------------------------------------------------------------ the plugin


def test_it_keeps_the_newest_and_the_best(benchmark, tmp_path):
    scores = iter([0.1, 0.9, 0.3, 0.5])
    strategy = make(plugins=[CheckpointPlugin(tmp_path, keep=2, best=lambda _: next(scores))])
    strategy.train_epochs = 4
    strategy.train(benchmark.train_stream, eval_streams=[])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "best.safetensors",
        "checkpoint-000003.safetensors",
        "checkpoint-000004.safetensors",
    ]
    again = make(plugins=[CheckpointPlugin(tmp_path, best=lambda _: 0.0)])
    assert load_checkpoint(again, tmp_path / "best.safetensors").rounds == 2
    assert again.plugins[0].best_score == 0.9


def test_every_counts_rounds_and_the_last_is_always_there(benchmark, tmp_path):
    strategy = make(plugins=[CheckpointPlugin(tmp_path, every=2, keep=9)], train_epochs=5)
    strategy.train(benchmark.train_stream, eval_streams=[])
    assert [int(p.stem[-6:]) for p in sorted(tmp_path.iterdir())] == [2, 4, 5]


def test_best_by_a_metrics_name(benchmark, tmp_path):
    plugin = CheckpointPlugin(tmp_path, best="Top1_Acc_Stream")
    make(plugins=[plugin]).train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    assert (tmp_path / "best.safetensors").exists()
    assert 0 <= plugin.best_score <= 1
    unknown = CheckpointPlugin(tmp_path, best="Nothing")
    with pytest.raises(ValueError, match="Top1_Acc"):
        make(plugins=[unknown]).train(benchmark.train_stream, eval_streams=[])


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


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"keep": 0}, {"mode": "best"}], ids=lambda a: next(iter(a))
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CheckpointPlugin(tmp_path, **arguments)


def test_the_plugin_needs_a_strategy_with_rounds(digits, tmp_path):
    model = CICNN(3, SHAPE, width=0.05)
    naive = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters()),
        plugins=[CheckpointPlugin(tmp_path)],
        evaluator=None,
    )
    with pytest.raises(CheckpointError, match="Naive"):
        naive.train(transfer_benchmark(digits(20), digits(10)).train_stream)


def test_a_checkpoint_is_little_more_than_its_tensors(benchmark, tmp_path):
    strategy = make(model=coupled(width=1.0), train_epochs=1)
    strategy.train(benchmark.train_stream, eval_streams=[])
    save_checkpoint(strategy, tmp_path / "x.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        held = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
        source = strategy.model.source
        assert all(
            not torch.equal(file.get_tensor(name), p)
            for name in file.keys()  # noqa: SIM118
            for p in source.parameters()
            if file.get_tensor(name).shape == p.shape and p.numel() > 100
        )
    assert (tmp_path / "x.safetensors").stat().st_size <= 1.1 * held


def test_saving_changes_nothing(benchmark, tmp_path):
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
