"""StreamingRidge as a strategy of Avalanche's."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, tensors_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_cetl import (
    ModuleEncoder,
    RidgeHead,
    SoftTargets,
    StreamingRidge,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
    with_source_features,
)

SHAPE, CLASSES = (1, 4, 4), 6


class Counting(nn.Flatten):
    """The pixels as features; counts the images that it has read."""

    images = 0

    def forward(self, x):
        type(self).images += len(x)
        return super().forward(x)


@pytest.fixture
def encoder():
    Counting.images = 0
    return ModuleEncoder(Counting(), layer="", input_shape=SHAPE)


def rows_of(seed, count=60):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.rand(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0))
    return centres[labels] + 0.1 * torch.rand(count, *SHAPE, generator=generator), labels


def benchmark(groups=((0, 1), (2, 3), (4, 5)), hidden=0):
    """New classes in every experience; the first rows of each may have no label."""
    streams = []
    for x, y in (rows_of(1), rows_of(2, 30)):
        parts = [torch.isin(y, torch.tensor(group)) for group in groups]
        streams.append([(x[part], y[part].clone()) for part in parts])
    for _, labels in streams[0]:
        labels[:hidden] = -1
    return transfer_benchmark(streams[0], streams[1])


def quiet():
    return EvaluationPlugin(
        accuracy_metrics(epoch=True, stream=True), loss_metrics(stream=True), loggers=[]
    )


def joint(head, rows):
    head.update(rows[0].flatten(1), rows[1])
    return head(rows_of(2)[0].flatten(1))


def test_it_ends_with_the_ridge_regression_of_all_rows_in_any_order(encoder):
    wanted = joint(RidgeHead(16), rows_of(1))
    for groups in (((0, 1), (2, 3), (4, 5)), ((5, 2), (4, 0), (1, 3))):
        for size in (7, 64):
            strategy = StreamingRidge(encoder, train_mb_size=size, evaluator=None)
            strategy.train(benchmark(groups).train_stream)
            found = strategy.model(rows_of(2)[0])
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_its_metrics_are_those_of_every_strategy(encoder):
    strategy, stream = StreamingRidge(encoder, evaluator=quiet()), benchmark()
    for number, experience in enumerate(stream.train_stream):
        trained = strategy.train(experience)
        assert number == 0 or trained["Top1_Acc_Epoch/train_phase/train_stream/Task000"] == 0
        found = strategy.eval(stream.test_stream)
        assert found["Top1_Acc_Stream/eval_phase/test_stream/Task000"] == pytest.approx(
            (number + 1) / 3
        )
    assert found["Loss_Stream/eval_phase/test_stream/Task000"] < 1


def test_stored_features_are_read_and_others_refused(encoder, tmp_path):
    stream = with_source_features(benchmark(), encoder, tmp_path, dtype="float32", progress=False)
    wanted = StreamingRidge(encoder, evaluator=None)
    wanted.train(benchmark().train_stream)
    Counting.images = 0
    strategy = StreamingRidge(encoder, evaluator=quiet())
    strategy.train(stream.train_stream)
    strategy.eval(stream.test_stream)
    assert Counting.images == 0
    torch.testing.assert_close(strategy.head.gram, wanted.head.gram)
    other = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), input_shape=SHAPE)
    for run in (StreamingRidge(other, evaluator=None).train, StreamingRidge(other).eval):
        with pytest.raises(ValueError, match="stored source features"):
            run(stream.train_stream)


def test_rows_without_a_label_are_passed_over(encoder):
    strategy = StreamingRidge(encoder, train_mb_size=4, evaluator=quiet())
    strategy.train(benchmark(hidden=5).train_stream)
    assert int(strategy.head.rows_per_class.sum()) == 60 - 3 * 5


def test_every_row_counts_once_where_tasks_have_other_numbers_of_rows(encoder):
    x, y = rows_of(1, 30)
    tasks = (torch.arange(30) < 3).long().tolist()
    stream = tensors_benchmark([(x, y)], [(x, y)], task_labels=[0]).train_stream
    dataset = stream[0].dataset.update_data_attribute("targets_task_labels", tasks)
    stream[0]._dataset = dataset
    strategy = StreamingRidge(encoder, evaluator=None, train_mb_size=8)
    strategy.train(stream)
    assert strategy.head.rows_per_class.tolist() == [5] * 6


@pytest.mark.parametrize(
    "made",
    [
        lambda stream: benchmark_from_datasets(train=[e.dataset for e in stream]).train_stream,
        lambda stream: split_online_stream(stream, 9, access_task_boundaries=True),
    ],
    ids=["data sets", "online"],
)
def test_experiences_need_no_timeline_of_classes(encoder, made):
    strategy = StreamingRidge(encoder, evaluator=None)
    for experience in made(benchmark(hidden=5).train_stream):
        strategy.train(experience)
    assert strategy.head.rows_per_class.tolist() == [7, 8] * 3
    torch.testing.assert_close(strategy.head.gram, trained(encoder, hidden=5).head.gram)


def trained(encoder, **settings):
    strategy = StreamingRidge(encoder, evaluator=None)
    strategy.train(benchmark(**settings).train_stream)
    return strategy


def test_what_would_count_rows_again_is_refused_before_it_does(encoder):
    replay = StreamingRidge(encoder, evaluator=None, plugins=[ReplayPlugin(20)])
    again = StreamingRidge(encoder, evaluator=None)
    again.train_epochs = 3
    for strategy, told in ((replay, "ReplayPlugin shows rows"), (again, "train_epochs=3")):
        with pytest.raises(ValueError, match=told):
            strategy.train(benchmark().train_stream)
        assert strategy.head.num_classes == 0 and not strategy.head.gram.any()


def test_any_module_is_an_encoder_with_a_head_of_its_width():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16))
    with pytest.raises(ValueError, match=r"head=RidgeHead\(in_features\)"):
        StreamingRidge(network)
    before = copy.deepcopy(network.state_dict())
    strategy = StreamingRidge(network, RidgeHead(16, projection=40), evaluator=quiet())
    strategy.train(benchmark().train_stream)
    assert all(torch.equal(before[n], value) for n, value in network.state_dict().items())
    accuracy = strategy.eval(benchmark().test_stream)
    assert accuracy["Top1_Acc_Stream/eval_phase/test_stream/Task000"] > 0.9


@pytest.mark.parametrize("way", ["state_dict", "checkpoint"])
def test_a_run_that_was_saved_goes_on_as_if_nothing_had_happened(encoder, tmp_path, way):
    stream = benchmark().train_stream
    whole, first, second = (StreamingRidge(encoder, evaluator=None) for _ in range(3))
    whole.train(stream)
    first.train(stream[:2])
    if way == "state_dict":
        second.model.load_state_dict(first.model.state_dict())
    else:
        save_checkpoint(first, tmp_path / "run")
        assert load_checkpoint(second, tmp_path / "run").experiences == 2
    second.train(stream[2])
    assert torch.equal(second.model(rows_of(2)[0]), whole.model(rows_of(2)[0]))


def test_another_network_learns_from_the_head(encoder):
    ridge, stream = StreamingRidge(encoder, evaluator=None), benchmark(((0, 1, 2, 3, 4, 5),))
    ridge.train(stream.train_stream)
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    strategy = Naive(
        model=student,
        optimizer=torch.optim.Adam(student.parameters(), 0.03),
        criterion=lambda logits, labels: 0 * logits.sum(),
        train_mb_size=30,
        train_epochs=60,
        plugins=[SoftTargets(temperature=2.0, source=encoder, head=ridge.head)],
        evaluator=None,
    )
    strategy.train(stream.train_stream)
    x, y = rows_of(2)
    assert (student(x).argmax(1) == y).double().mean() > 0.9
