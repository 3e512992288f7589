import pytest
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.supervised import Naive
from coupled_runs import SHAPE
from saved_runs import make

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CheckpointError,
    CheckpointPlugin,
    load_checkpoint,
    transfer_benchmark,
)


def test_the_newest_checkpoints_and_the_best_are_kept(benchmark, tmp_path):
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


def test_every_counts_rounds_and_the_last_round_is_always_kept(benchmark, tmp_path):
    strategy = make(plugins=[CheckpointPlugin(tmp_path, every=2, keep=9)], train_epochs=5)
    strategy.train(benchmark.train_stream, eval_streams=[])
    assert [int(p.stem[-6:]) for p in sorted(tmp_path.iterdir())] == [2, 4, 5]


def test_the_round_in_which_training_is_stopped_has_a_checkpoint(benchmark, tmp_path):
    class Stop(CETLPlugin):
        def after_round(self, strategy, *args, **kwargs):
            if strategy.clock.train_exp_epochs == 3:
                strategy.stop_training()

    plugins = [Stop(), CheckpointPlugin(tmp_path, every=5)]
    make(plugins=plugins, train_epochs=9).train(benchmark.train_stream, eval_streams=[])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000003.safetensors"]


def test_checkpoints_of_a_run_that_was_given_up_are_not_the_newest(benchmark, tmp_path):
    for rounds in (4, 2):
        strategy = make(plugins=[CheckpointPlugin(tmp_path, keep=3)], train_epochs=rounds)
        strategy.train(benchmark.train_stream, eval_streams=[])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"checkpoint-00000{number}.safetensors" for number in (1, 2)),
        *(f"earlier-checkpoint-00000{number}.safetensors" for number in (2, 3, 4)),
    ]
    again = make(plugins=[CheckpointPlugin(tmp_path)])
    assert load_checkpoint(again, tmp_path).rounds == 2


def test_the_best_checkpoint_is_chosen_by_the_name_of_a_metric(benchmark, tmp_path):
    plugin = CheckpointPlugin(tmp_path, best="Top1_Acc_Stream")
    make(plugins=[plugin]).train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    assert (tmp_path / "best.safetensors").exists()
    assert 0 <= plugin.best_score <= 1
    unknown = CheckpointPlugin(tmp_path, best="Nothing")
    with pytest.raises(ValueError, match="Top1_Acc"):
        make(plugins=[unknown]).train(benchmark.train_stream, eval_streams=[])


def test_the_beginning_of_several_metrics_is_refused_with_their_names(benchmark, tmp_path):
    strategy = make(plugins=[CheckpointPlugin(tmp_path, best="Top1_Acc_Stream")])
    streams = [benchmark.test_stream, benchmark.train_stream]
    with pytest.raises(ValueError, match=r"several metrics: \S+/test_stream/.*/train_stream/"):
        strategy.train(benchmark.train_stream, eval_streams=streams)
    whole = "Top1_Acc_Stream/eval_phase/train_stream/Task000"
    plugin = CheckpointPlugin(tmp_path, best=whole)
    make(plugins=[plugin], train_epochs=1).train(benchmark.train_stream, eval_streams=streams)
    assert 0 <= plugin.best_score <= 1


def scored(scores, tmp_path, every, streams, before=()):
    """Return the best score of a run, in which each evaluation emits the next score."""

    class Score(PluginMetric):
        def result(self):
            """Nothing."""

        def reset(self):
            """Nothing."""

        def after_eval(self, strategy):
            name = strategy.experience.origin_stream.name
            return [MetricValue(self, f"Score/{name}", next(scores), 0)]

    plugin = CheckpointPlugin(tmp_path, best="Score")
    strategy = make(plugins=[plugin], train_epochs=2, eval_every=every)
    strategy.evaluator.metrics = [Score()]
    for stream in before:
        strategy.eval(stream)
    strategy.train(streams[0], eval_streams=streams[1:])
    return plugin.best_score


@pytest.mark.parametrize(
    ("every", "scores", "best"),
    [
        (1, [0.9, 0.2, 0.4], 0.4),  # before training, after round 1, after round 2
        (2, [0.9, 0.2, 0.8], 0.2),  # before training, after round 1, and at the end
        (0, [0.9, 0.2], None),  # before training, and at the end, once the last round is over
    ],
)
def test_a_metric_is_not_of_the_weights_of_a_round_that_did_not_emit_it(
    benchmark, tmp_path, every, scores, best
):
    streams = benchmark.train_stream, benchmark.test_stream
    assert scored(iter(scores), tmp_path, every, streams) == best


def test_a_stream_that_was_evaluated_before_training_is_not_followed(benchmark, tmp_path):
    streams = benchmark.train_stream, benchmark.test_stream
    scores = iter([0.9, 0.1, 0.3, 0.2])
    assert scored(scores, tmp_path, 1, streams, before=[benchmark.train_stream]) == 0.3


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


def test_a_score_that_is_none_or_not_finite_is_not_the_best(benchmark, tmp_path):
    scores = iter([None, float("nan"), 0.2, float("inf")])
    plugin = CheckpointPlugin(tmp_path, best=lambda _: next(scores))
    make(plugins=[plugin], train_epochs=4).train(benchmark.train_stream, eval_streams=[])
    assert plugin.best_score == 0.2
    again = make()
    assert load_checkpoint(again, tmp_path / "best.safetensors").rounds == 3


def test_one_checkpoint_may_be_kept_and_none_is_refused(tmp_path):
    assert CheckpointPlugin(tmp_path, every=1, keep=1).keep == 1
    for wrong in ({"keep": 0}, {"every": 0}, {"keep": -1}):
        with pytest.raises(ValueError, match="have to be >= 1"):
            CheckpointPlugin(tmp_path, **wrong)
