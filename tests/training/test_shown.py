"""What Avalanche's progress bar and accuracies show of a round."""

import re

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from coupled_runs import coupled, small_coupled, strategy

from avalanche_cetl import (
    CETLStrategy,
    InformationMaximization,
    SoftTargets,
    adaptation_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.training import ClassifyStage, Stage, TrainingStage, Variant
from avalanche_cetl.training.shown import Iterations
from avalanche_cetl.training.stages import Callbacks


class Steps(SupervisedPlugin):
    """Counts training iterations, and keeps the length that a loader had before each round."""

    def __init__(self):
        super().__init__()
        self.promised, self.made, self.loaders = [], [], []

    def before_training_epoch(self, strategy, *args, **kwargs):
        self.promised.append(len(strategy.dataloader))
        self.made.append(0)

    def after_training_iteration(self, strategy, *args, **kwargs):
        self.made[-1] += 1
        self.loaders.append(strategy.dataloader)


class Twice(TrainingStage):
    """A stage of a user's own with all callbacks."""

    kind, name, names = Stage.CLASSIFY, "twice", ("L_twice",)
    trains, callbacks = ("target",), Callbacks.ALL

    def losses(self, networks, batch):
        return {"L_twice": batch.logits.square().mean()}


OWN = Variant("own", (Twice(), ClassifyStage()))


@pytest.mark.parametrize("labels", [2, 4, None], ids=["few", "some", "all"])
@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "u", "stage_epochs": "balanced"},
        {"variant": "e", "stage_epochs": (1, 2, 3)},
        {"variant": "gfi"},
        {"variant": "e", "alternate": "iteration"},
        {"variant": "e", "accumulate": 2},
        {"variant": "joint"},
        {"variant": "direct"},
        {"variant": OWN},
        {"variant": OWN, "alternate": "iteration"},
    ],
    ids=[
        "balanced",
        "passes",
        "measured",
        "iterations",
        "accumulated",
        "joint",
        "direct",
        "own",
        "own by turns",
    ],
)
def test_the_loader_s_length_is_the_number_of_iterations(digits, labels, settings):
    data = transfer_benchmark(digits(18), digits(3), labels_per_class=labels)
    steps = Steps()
    one = strategy(small_coupled(), plugins=[steps], train_epochs=2, train_mb_size=4, **settings)
    one.train(data.train_stream)
    assert len(steps.made) == 2 and steps.promised == steps.made and min(steps.made) > 0
    assert not any(isinstance(loader, Iterations) for loader in steps.loaders)


@pytest.mark.parametrize("settings", [{"variant": "direct"}, {"variant": "e"}], ids=str)
@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_it_is_without_a_label_too(digits, settings, alternate):
    data = adaptation_benchmark(None, digits(40), digits(9))
    steps = Steps()
    soft = SoftTargets(weight=1.0, temperature=2.0, rows="target")
    s = strategy(plugins=[steps, soft], alternate=alternate, **settings)
    s.train(data.train_stream)
    assert steps.promised == steps.made


def test_a_loader_that_a_plugin_puts_in_its_place_stays(digits):
    class Other(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            strategy.dataloader = made.setdefault("loader", list(strategy.dataloader))

    made, steps = {}, Steps()
    data = transfer_benchmark(digits(20), digits(9))
    strategy(plugins=[Other(), steps], variant="e").train(data.train_stream)
    assert steps.loaders and all(loader is made["loader"] for loader in steps.loaders)


def printed(capsys, data, metrics=None, **settings):
    metrics = metrics or [accuracy_metrics(epoch=True), loss_metrics(epoch=True)]
    evaluator = EvaluationPlugin(*metrics, loggers=[InteractiveLogger()])
    s = strategy(evaluator=evaluator, **settings)
    capsys.readouterr()
    s.train(data.train_stream)
    return capsys.readouterr().out, s


def test_the_bar_ends_at_its_total(digits, capsys):
    data = transfer_benchmark(digits(60), digits(9), labels_per_class=2)
    out, _ = printed(capsys, data, variant="gfi", stage_epochs="balanced", train_mb_size=4)
    bars = re.findall(r"(\d+)/(\d+) \[", out)
    assert bars[-1][0] == bars[-1][1] and not re.search(r"[1-9]\d*it \[", out)


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "best"},
        {"variant": "e", "plugins": [InformationMaximization(rows="target")]},
        {"variant": Variant("own", (Twice(),)), "plugins": [SoftTargets(rows="target")]},
    ],
    ids=["best", "e", "own stage"],
)
def test_no_accuracy_is_told_where_no_row_has_a_label(digits, capsys, settings):
    data = adaptation_benchmark(None, digits(40), digits(9))
    out, s = printed(capsys, data, train_epochs=2, **settings)
    assert "Top1_Acc" not in out and out.count("Loss_Epoch") == 2
    assert len(s.evaluator.metrics) == 2  # all of them are there again
    s.train(transfer_benchmark(digits(20), digits(9)).train_stream)
    assert "Top1_Acc_Epoch" in capsys.readouterr().out


def test_the_default_evaluator_tells_none(digits, capsys):
    def run(data):
        model = coupled()
        s = CETLStrategy(
            model=model, optimizer=torch.optim.Adam(model.parameters()), preset="best",
            train_mb_size=16,
        )  # fmt: skip
        s.train(data.train_stream)
        return capsys.readouterr().out

    assert "Top1_Acc" not in run(adaptation_benchmark(None, digits(40), digits(9)))
    assert "Top1_Acc_Epoch" in run(adaptation_benchmark(digits(40), digits(40), digits(9)))


def test_replayed_rows_without_a_label_are_no_errors(digits):
    """They are left out of mini-batches; in a mini-batch of them alone none is told."""
    sets = [digits(24, seed=seed) for seed in range(2)]
    data = transfer_benchmark(sets, sets, labels_per_class=2)
    right, lone = [], []

    class Watch(SupervisedPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            labels = strategy.mb_y
            lone.append(bool((labels < 0).all()))
            assert lone[-1] or labels.min() >= 0
            if not lone[-1]:
                right.extend((strategy.mb_output.argmax(1) == labels).tolist())

    class Alone(SupervisedPlugin):
        """The last mini-batch is of rows without a label."""

        def before_training_epoch(self, strategy, *args, **kwargs):
            dataset = strategy.experience.dataset
            rows = [row for row in dataset if int(row[1]) < 0]
            batch = dataset.collate_fn(rows[:3])
            strategy.dataloader = [*strategy.dataloader, batch]

    plugins = [ReplayPlugin(12), Alone(), Watch()]
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[])
    s = strategy(small_coupled(), variant="direct", plugins=plugins, evaluator=evaluator)
    for experience in data.train_stream:
        right.clear()
        s.train(experience)
        assert True in lone and right
        (found,) = s.evaluator.get_last_metrics().values()
        assert found == pytest.approx(sum(right) / len(right))


def test_evaluation_between_rounds_has_its_accuracy(digits):
    metrics = accuracy_metrics(minibatch=True, epoch=True, epoch_running=True, stream=True)
    data = adaptation_benchmark(None, digits(40), digits(30))
    s = strategy(evaluator=EvaluationPlugin(metrics, loggers=[]), preset="best", eval_every=1)
    s.train(data.train_stream, [data.test_stream])
    assert {name.split("/")[0] for name in s.evaluator.get_last_metrics()} == {"Top1_Acc_Stream"}
