"""Avalanche's examples in short form, with our strategies in the place of theirs."""

import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    nc_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.evaluation import GenericPluginMetric
from avalanche.evaluation.metrics import (
    TaskAwareAccuracy,
    accuracy_metrics,
    bwt_metrics,
    class_accuracy_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
    forward_transfer_metrics,
    loss_metrics,
    timing_metrics,
)
from avalanche.logging import CSVLogger, TextLogger
from avalanche.models import MTSimpleMLP, SimpleMLP
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_cetl import GFI, CETLStrategy, CoupledModel, GFIPlugin, ModuleEncoder

SHAPE = (1, 4, 4)
KINDS = ("plugin", "strategy", "coupled")


class Blobs(torch.utils.data.Dataset):
    """Images whose bright pixel is their class; easy to learn."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.targets = (torch.arange(count) % 4).tolist()
        self.x = 0.3 * torch.rand(count, *SHAPE, generator=generator)
        for i, label in enumerate(self.targets):
            self.x[i, 0, label] += 0.7

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.x[i], self.targets[i]


def split(**arguments):
    return nc_benchmark(Blobs(32, 0), Blobs(16, 1), 2, shuffle=False, **arguments)


def make(kind, network, groups=None, **arguments):
    """A strategy for a network; ``groups`` makes the optimiser's groups out of the network."""
    model = network
    if kind == "coupled":
        source = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 4))
        model = CoupledModel.build(ModuleEncoder(source, input_shape=SHAPE), network, SHAPE)
    params = model.parameters() if groups is None else groups(network)
    if groups is not None and kind == "coupled":
        params[0]["params"] += list(model.decoder_parameters().values())
    own = {
        "model": model,
        "optimizer": torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "train_mb_size": 4,
        "eval_mb_size": 8,
        "evaluator": None,
        **arguments,
    }
    if kind == "coupled":
        return CETLStrategy(preset="paper", variant="e", loss_weights=(0.01, 1, 0.01), **own)
    if kind == "strategy":
        return GFI(dwa_lambda=0.1, gfi={"samples": 8}, **own)
    return Naive(**own | {"plugins": [*own.get("plugins", ()), GFIPlugin(0.1, samples=8)]})


def metrics(*parts, loggers=()):
    return EvaluationPlugin(*parts, loggers=list(loggers), collect_all=True)


def last(evaluator, name):
    """The last values of the metrics whose names begin so."""
    found = evaluator.get_all_metrics()
    return {key: values[-1] for key, (_, values) in found.items() if key.startswith(name)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_tasks_trains_a_head_for_each(kind):
    benchmark = split(task_labels=True, class_ids_from_zero_in_each_exp=True)
    network = MTSimpleMLP(input_size=16, hidden_size=12)
    evaluator = metrics(accuracy_metrics(experience=True))
    run = make(kind, network, evaluator=evaluator, train_epochs=4)
    for experience in benchmark.train_stream:
        run.train(experience)
        run.eval(benchmark.test_stream)
    assert set(network.classifier.classifiers) == {"0", "1"}
    found = last(evaluator, "Top1_Acc_Exp/eval_phase")
    assert {key.split("/")[3] for key in found} == {"Task000", "Task001"}
    assert min(found.values()) > 0.7
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert all(id(p) in held for p in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_the_optimizer_keep_their_parameters_and_rates(kind):
    benchmark = split(task_labels=True, class_ids_from_zero_in_each_exp=True)
    network = MTSimpleMLP(input_size=16, hidden_size=12)

    def groups(network):
        return [
            {"params": list(network.features.parameters()), "lr": 0.05},
            {"params": list(network.classifier.parameters()), "lr": 0.2},
        ]

    run = make(kind, network, groups)
    for experience in benchmark.train_stream:
        run.train(experience)
    trunk, heads = ({id(p) for p in group["params"]} for group in run.optimizer.param_groups)
    assert {id(p) for p in network.features.parameters()} <= trunk
    # The second task's head, which the model's adaptation has added, is with the first one's.
    assert {id(p) for p in network.classifier.parameters()} == heads
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.05, 0.2]


@pytest.mark.parametrize("kind", KINDS)
def test_replay_over_an_online_stream_keeps_rows_of_all_experiences(kind):
    benchmark = split(task_labels=False)
    network = SimpleMLP(4, input_size=16, hidden_size=12, drop_rate=0)
    buffer = ReservoirSamplingBuffer(max_size=12)
    replay = ReplayPlugin(mem_size=12, batch_size=4, storage_policy=buffer)
    evaluator = metrics(accuracy_metrics(stream=True))
    run = make(kind, network, plugins=[replay], evaluator=evaluator, train_epochs=4)
    stream = split_online_stream(benchmark.train_stream, experience_size=8)
    seen = 0
    for experience in stream:
        run.train(experience)
        seen += len(experience.dataset)
    run.eval(benchmark.test_stream)
    assert seen == 32 and run.clock.train_exp_counter == 4
    kept = {int(y) // 2 for y in buffer.buffer.targets}
    assert len(buffer.buffer) == 12 and kept == {0, 1}  # of both experiences
    (accuracy,) = last(evaluator, "Top1_Acc_Stream").values()
    assert accuracy > 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_and_loggers_follow_every_epoch(kind, tmp_path):
    benchmark = split(task_labels=False)
    text = (tmp_path / "log.txt").open("w+")
    csv = CSVLogger(log_folder=str(tmp_path / "csv"))
    evaluator = metrics(
        accuracy_metrics(
            minibatch=True, epoch=True, epoch_running=True, experience=True, stream=True
        ),
        loss_metrics(minibatch=True, epoch=True, epoch_running=True, experience=True, stream=True),
        class_accuracy_metrics(epoch=True, stream=True, classes=[0, 3]),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        forward_transfer_metrics(experience=True, stream=True),
        timing_metrics(epoch=True),
        confusion_matrix_metrics(num_classes=4, save_image=False, stream=True),
        loggers=[TextLogger(text), csv],
    )
    network = SimpleMLP(4, input_size=16, hidden_size=12)
    run = make(kind, network, evaluator=evaluator, train_epochs=2, eval_every=1)
    for experience in benchmark.train_stream:
        # A list: Avalanche cannot log a stream that it is given as a tuple.
        run.train(experience, eval_streams=[benchmark.test_stream])
    run.eval(benchmark.test_stream)
    csv.close()
    text.seek(0)
    log = text.read()
    text.close()
    assert "Top1_ClassAcc_Stream/eval_phase/test_stream/Task000/3" in log
    lines = (tmp_path / "csv" / "eval_results.csv").read_text().splitlines()
    assert len(lines) == 1 + 2  # a head, and the two test experiences
    (matrix,) = last(evaluator, "ConfusionMatrix_Stream").values()
    assert matrix.shape == (4, 4) and int(matrix.sum()) == 16
    curves = evaluator.get_all_metrics()
    (accuracy,) = (v for k, (_, v) in curves.items() if k.startswith("Top1_Acc_Stream"))
    assert len(accuracy) > 4 and all(0 <= value <= 1 for value in accuracy)  # every epoch, and now


class AccuracyByGroup(GenericPluginMetric):
    """Accuracy by a data attribute of the test rows, as if it were a task label."""

    def __init__(self):
        super().__init__(TaskAwareAccuracy(), reset_at="stream", emit_at="stream", mode="eval")

    def update(self, strategy):
        self._metric.update(strategy.mb_output, strategy.mb_y, strategy.mbatch[2])

    def __str__(self):
        return "Group_Acc"


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_tell_tasks_and_data_attributes_apart(kind):
    sets = []
    for task in (0, 1):
        blobs = Blobs(16, task)
        attributes = [
            DataAttribute(blobs.targets, "targets"),
            DataAttribute([i // 8 for i in range(16)], "group", use_in_getitem=True),
            TaskLabels([task] * 16),
        ]
        sets.append(TaskAwareSupervisedClassificationDataset([blobs], data_attributes=attributes))
    benchmark = with_classes_timeline(
        with_task_labels(benchmark_from_datasets(train=sets, test=sets))
    )
    evaluator = metrics(accuracy_metrics(experience=True), AccuracyByGroup())
    network = SimpleMLP(4, input_size=16, hidden_size=12, drop_rate=0)
    run = make(kind, network, evaluator=evaluator, train_epochs=3)
    for experience in benchmark.train_stream:
        run.train(experience)
    run.eval(benchmark.test_stream)
    tasks = {key.split("/")[3] for key in last(evaluator, "Top1_Acc_Exp")}
    assert tasks == {"Task000", "Task001"}
    found = last(evaluator, "Group_Acc")
    assert len(found) == 2 and all(any(t in key for key in found) for t in tasks)
    assert all(0 <= value <= 1 for value in found.values())
