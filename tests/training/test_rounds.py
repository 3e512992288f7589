import re

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin
from coupled_runs import coupled, moved, small_coupled, snapshot, strategy

from avalanche_cetl import transfer_benchmark
from avalanche_cetl.training import Stage


def test_rounds_are_epochs_for_clock_evaluation_and_schedulers(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluations = []

    class Watch(SupervisedPlugin):
        def after_eval(self, strategy, *args, **kwargs):
            evaluations.append(strategy.clock.train_exp_epochs)

    scheduler = LRSchedulerPlugin(
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), reset_lr=False
    )
    s = strategy(
        model,
        optimizer=optimizer,
        train_epochs=3,
        eval_every=1,
        plugins=[scheduler, Watch()],
        variant="e",
    )
    s.train(transfer.train_stream, eval_streams=[transfer.test_stream])
    assert s.clock.train_exp_epochs == 3
    assert s.clock.train_iterations == 3  # stage 3 has one mini-batch of 15 rows
    # The host clocks its periodic evaluation before the clock itself counts the epoch.
    assert len(evaluations) == 4
    rates = [
        o.param_groups[0]["lr"]
        for o in (s.optimizer, s.optimizers["stage 1"].optimizer, s.optimizers["stage 2"].optimizer)
    ]
    assert rates[0] == pytest.approx(0.0125)
    assert rates[1] == rates[2] == pytest.approx(0.025)  # as of its last step


def test_stages_make_the_passes_of_stage_epochs(transfer):
    steps = {stage: 0 for stage in Stage}

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            steps[strategy.stage] += 1

    s = strategy(variant="e", stage_epochs=(1, 2, 3), plugins=[Watch()])
    s.train(transfer.train_stream)
    assert steps[Stage.COUPLED] == 2 * 3 and steps[Stage.CLASSIFY] == 3 * 1


def test_early_stopping_counts_rounds(transfer):

    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    stop = EarlyStoppingPlugin(
        patience=1, val_stream_name="test_stream", metric_name="Top1_Acc_Stream"
    )
    s = strategy(
        lr=0.0, train_epochs=9, eval_every=1, evaluator=evaluator, plugins=[stop], variant="e"
    )
    s.train(transfer.train_stream, eval_streams=[transfer.test_stream])
    assert 1 <= s.clock.train_exp_epochs < 9


def test_a_stop_in_the_last_epoch_does_not_silence_the_next_experience(transfer):
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            strategy.stop_training()

    s = strategy(plugins=[Stop()], variant="e")
    s.train([transfer.train_stream[0], transfer.train_stream[0]])
    before = snapshot(s.model)
    s.train(transfer.train_stream)
    assert moved(s.model, before)


def test_the_source_runs_once_for_a_batch_that_two_stages_read(transfer):
    model = coupled()
    calls = []
    model.source.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
    s = strategy(model, variant="e", warmup_epochs=0, alternate="iteration")
    s.train(transfer.train_stream)
    assert sum(calls) == 2 * 36  # once for the feature statistics, once in training


@pytest.mark.parametrize("variant", ["direct", "e", "joint"])
def test_a_target_network_that_cannot_learn_is_named_before_training(digits, variant):
    model = small_coupled()
    model.target.requires_grad_(False)
    s = strategy(model, variant=variant)
    experience = transfer_benchmark(digits(24), digits(6)).train_stream[0]
    if variant == "joint":  # T1 learns in the same step
        s.train(experience)
        model.requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(ValueError, match="no weight of the target network learns"):
        s.train(experience)
    assert not moved(model, before)
    next(iter(model.target_parameters().values())).requires_grad_()
    s.train(experience)
    assert moved(model, before)


def runs_away(**settings):
    """A training whose decoder adds 100 to each pixel, and hardly learns."""
    made = strategy(warmup_epochs=0, lr=1e-6, train_epochs=2, **settings)
    with torch.no_grad():
        last = [m for m in made.model.decoder.layers if hasattr(m, "bias")][-1]
        last.bias.add_(100)
    return made


def of_pictures(caught):
    return [str(one.message) for one in caught if "T1 runs away" in str(one.message)]


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_pictures_far_larger_than_the_images_are_told_once(transfer, recwarn, alternate):
    made = runs_away(variant="e", alternate=alternate)
    made.train(transfer.train_stream)
    made.train(transfer.train_stream)
    (text,) = of_pictures(recwarn)
    assert "after stage 2 of epoch 0" in text
    assert ("fixed_goal=True" in text) == (alternate == "epoch")
    assert re.search(r"root mean square 100 and 0\.\d+\)", text) and "dwa_lambda=0.001" in text


@pytest.mark.parametrize("settings", [{"variant": "e", "fixed_goal": True}, {"variant": "joint"}])
def test_a_fixed_goal_is_no_advice_where_there_is_one_or_can_be_none(transfer, recwarn, settings):
    runs_away(**settings).train(transfer.train_stream)
    (text,) = of_pictures(recwarn)
    assert "lower the learning rate" in text and "fixed_goal" not in text


@pytest.mark.parametrize("variant", ["e", "gfi", "joint", "two_step"])
def test_ordinary_pictures_are_not_told(transfer, recwarn, variant):
    strategy(variant=variant, train_epochs=2).train(transfer.train_stream)
    strategy(coupled(source=None), variant="e").train(transfer.train_stream)
    assert not of_pictures(recwarn)
