import copy
import warnings

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.supervised import Naive
from coupled_runs import coupled, small_coupled, small_target, snapshot, strategy
from torch import nn

from avalanche_cetl import CETLStrategy, transfer_benchmark


def test_the_target_network_learns_to_classify_and_to_reconstruct(transfer):
    model = small_coupled()
    s = strategy(model, train_epochs=8, alternate="iteration", warmup_epochs=3)
    s.train(transfer.train_stream)
    dataset = transfer.test_stream[0].dataset
    x = torch.stack([row[0] for row in dataset])
    y = torch.tensor([row[1] for row in dataset])
    model.eval()
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.9
        error = (model.reconstruct_source(x) - x).square().mean()
    assert error < x.var()


PLUGINS = {
    "EWC": lambda: EWCPlugin(ewc_lambda=1.0),
    "EWC online": lambda: EWCPlugin(ewc_lambda=1.0, mode="online", decay_factor=0.5),
    "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
    "Replay": lambda: ReplayPlugin(mem_size=20),
    "SI": lambda: SynapticIntelligencePlugin(si_lambda=1e-3),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_stock_plugins_ride_along_over_several_experiences(digits, name):
    sets = [
        transfer_benchmark(digits(40, seed=i), digits(20), labels_per_class=4)
        .train_stream[0]
        .dataset
        for i in range(3)
    ]
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=sets)))
    s = strategy(small_coupled(), train_epochs=2, plugins=[PLUGINS[name]()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for experience in benchmark.train_stream:
            s.train(experience)
    assert s.clock.train_exp_counter == 3
    assert all(torch.isfinite(p).all() for p in s.model.parameters())


def test_callers_plugin_list_is_left_alone(transfer):
    plugins = [SupervisedPlugin()]
    strategy(small_coupled(), plugins=plugins)
    assert len(plugins) == 1


def test_a_script_with_naive_needs_no_other_change(digits):
    """Only the class and the model change; the benchmark has no domain labels."""
    from avalanche.benchmarks.utils import as_classification_dataset
    from torch.utils.data import TensorDataset

    def run(kind, model):
        images, labels = digits(30)
        data = TensorDataset(images, labels)
        data.targets = labels.tolist()
        benchmark = benchmark_from_datasets(
            train=[as_classification_dataset(data)], test=[as_classification_dataset(data)]
        )
        evaluator = EvaluationPlugin(
            accuracy_metrics(epoch=True, stream=True), loss_metrics(minibatch=True)
        )
        s = kind(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), 1e-2),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            train_epochs=4,
            eval_mb_size=8,
            device="cpu",
            evaluator=evaluator,
        )
        for experience in benchmark.train_stream:
            s.train(experience)
        return s.eval(benchmark.test_stream)

    plain = run(Naive, small_target())
    ours = run(CETLStrategy, coupled(target=small_target()))
    assert plain.keys() == ours.keys()
    assert ours["Top1_Acc_Stream/eval_phase/test_stream"] > 0.5


@pytest.mark.parametrize("count", [3, 17])
@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_batch_norm_takes_tiny_sets_and_a_last_batch_of_one(digits, count, alternate):
    torch.manual_seed(0)
    target = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    benchmark = transfer_benchmark(digits(count), digits(6))
    s = strategy(coupled(target=target), train_mb_size=16, alternate=alternate)
    s.train(benchmark.train_stream)
    assert all(torch.isfinite(p).all() for p in s.model.parameters())
    assert s.model.target.module[5].training


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_the_same_seed_gives_the_same_weights(transfer, alternate):
    results = []
    for _ in range(2):
        model = small_coupled()
        torch.manual_seed(7)
        strategy(model, alternate=alternate, input_noise=0.3, train_epochs=2).train(
            transfer.train_stream
        )
        results.append(snapshot(model))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_a_copied_strategy_trains_as_the_first_one_and_apart_from_it(transfer):
    first = strategy(small_coupled(), variant="gfi", train_epochs=1)
    first.train(transfer.train_stream)
    second = copy.deepcopy(first)
    for one in (first, second):
        torch.manual_seed(5)
        one.train(transfer.train_stream)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(a is not b and torch.equal(a, b) for a, b in pairs)
    assert second.networks.model is second.model


def test_the_strength_of_ewc_is_taken_as_the_strategys():
    model = small_coupled()
    given = {"model": model, "optimizer": torch.optim.Adam(model.parameters()), "evaluator": None}
    with pytest.warns(FutureWarning, match="is called dwa_lambda= here"):
        assert CETLStrategy(**given, variant="gfi", ewc_lambda=2.0).recipe.dwa_lambda == 2.0
    with pytest.raises(TypeError, match="give dwa_lambda= alone"):
        CETLStrategy(**given, variant="gfi", ewc_lambda=2.0, dwa_lambda=1.0)


class Clips(SupervisedPlugin):
    """Writes down the callbacks of an iteration, and lets no gradient through."""

    def __init__(self):
        super().__init__()
        self.order = []

    def before_backward(self, strategy, **kwargs):
        self.order.append("before_backward")

    def after_backward(self, strategy, **kwargs):
        self.order.append("after_backward")
        for p in strategy.model.parameters():
            p.grad = None

    def before_update(self, strategy, **kwargs):
        self.order.append("before_update")

    def after_update(self, strategy, **kwargs):
        self.order.append("after_update")


def test_gradients_can_be_changed_between_backward_and_the_optimisers_step(transfer):
    model = coupled()
    before, plugin = snapshot(model.target), Clips()
    strategy(model, variant="direct", plugins=[plugin]).train(transfer.train_stream)
    assert all(torch.equal(before[n], p) for n, p in snapshot(model.target).items())
    assert plugin.order[:4] == [
        "before_backward",
        "after_backward",
        "before_update",
        "after_update",
    ]
