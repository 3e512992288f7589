"""Targets with heads by task."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.models import MTSimpleCNN, MTSimpleMLP, MultiTaskModule
from coupled_runs import SHAPE, coupled, strategy
from networks import Heads
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import CoupledModel, GFISettings, ViewConsistency, as_target, transfer_benchmark
from avalanche_cetl.allocation import PAIRS, measure_importance
from avalanche_cetl.allocation.importance import coupled_task
from avalanche_cetl.information import fisher_information
from avalanche_cetl.models.coupled import TargetTasks
from avalanche_cetl.plugins import Batch
from avalanche_cetl.training.networks import MultiTaskCoupledModel


def mixed(x, y, tasks):
    data = torch.utils.data.TensorDataset(x, y)
    attributes = [DataAttribute(y.tolist(), "targets"), TaskLabels(tasks)]
    dataset = TaskAwareSupervisedClassificationDataset([data], data_attributes=attributes)
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=[dataset])))


@pytest.mark.parametrize("variant", ["e", "joint"])
@pytest.mark.parametrize("make", [lambda: MTSimpleMLP(64, 12), Heads])
def test_a_stream_of_tasks_trains_a_head_for_each(digits, make, variant):
    model = coupled(target=make())
    assert isinstance(model, MultiTaskCoupledModel)
    sets = [digits(20), digits(20, seed=1)]
    benchmark = transfer_benchmark(sets, sets, task_labels=True)
    run = strategy(model, variant=variant, train_epochs=2)
    heads = {}
    for task, experience in enumerate(benchmark.train_stream):
        run.train(experience)
        heads[task] = model.target.module.classifier.classifiers[str(task)].classifier.weight
        heads[task] = heads[task].detach().clone()
    run.eval(benchmark.test_stream)
    now = model.target.module.classifier.classifiers
    assert torch.equal(now["0"].classifier.weight, heads[0])  # the second task leaves it alone
    x, tasks = sets[0][0], torch.tensor([0, 1] * 10)
    out, first, second = (model.eval()(x, t) for t in (tasks, 0 * tasks, 0 * tasks + 1))
    torch.testing.assert_close(out[::2], first[::2])
    torch.testing.assert_close(out[1::2], second[1::2])
    assert not torch.allclose(first, second)


def test_images_of_mixed_tasks_train_the_heads_of_their_own(digits):
    x, y = digits(40)
    model = coupled(target=Heads())
    plugins = [ViewConsistency(1.0, threshold=0.0)]
    run = strategy(model, variant="e", plugins=plugins, train_epochs=6)
    # The second task's labels are the first one's in another order.
    tasks = torch.arange(40) // 3 % 2
    y = torch.where(tasks == 0, y, 2 - y)
    run.train(mixed(x, y, tasks.tolist()).train_stream)
    assert run.round_losses["L_view"] > 0
    found = model.eval()(x, tasks).argmax(1)
    assert float((found == y).float().mean()) > 0.8
    assert float((model(x, 1 - tasks).argmax(1) == y).float().mean()) < 0.6


@pytest.fixture
def six(digits):
    """A network that was trained on six images of two tasks; the images, labels and tasks."""
    x, y = digits(6)
    tasks = torch.tensor([0, 1, 1, 0, 1, 0])
    model = coupled(target=Heads())
    strategy(model, variant="e").train(mixed(x, y, tasks.tolist()).train_stream)
    return model, x, y, tasks


def test_importances_read_each_row_through_its_own_head(six):
    """The Fisher information of the logits, as the partner in GFI3 reads it."""
    model, x, y, tasks = six
    loss, targets = coupled_task("logits", (0, 1), y, tasks)
    view = TargetTasks(model, ("logits",), (0, 1))
    params = list(model.target_parameters())
    features = model.source(x)
    found = fisher_information(view, (features, x), loss, params, targets=targets)
    sums = {n: torch.zeros_like(p) for n, p in model.target_parameters().items()}
    model.eval()
    for i in range(6):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1], tasks[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.target_parameters().items():
            if p.grad is not None:
                sums[name] += p.grad**2 / 6
    for name, wanted in sums.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-8)
    generator = torch.Generator().manual_seed(0)
    measured = measure_importance(
        model, PAIRS["GFI3"], Batch([x, y, tasks]), GFISettings(), "gfi", generator
    )
    shared = measured.shared
    assert all(v == 0 for n, v in shared.items() if "classifiers" in n)  # heads reconstruct nothing


def test_vectors_are_of_each_row_s_own_head(six):
    model, x, y, tasks = six
    settings = GFISettings(fisher="logits", threshold=0.5, probability=1.0)
    found = [
        measure_importance(
            model, PAIRS["GFI3"], Batch([x, labels, tasks]), settings, "gfi",
            torch.Generator().manual_seed(0),
        )
        for labels in (y, -torch.ones_like(y))
    ]  # fmt: skip
    assert found[0].shared == found[1].shared and any(found[0].shared.values())
    assert all(v == 0 for n, v in found[0].shared.items() if "classifiers" in n)


def test_importances_in_a_basis_leave_heads_and_gate_the_trunk_by_each_row_s_own_head(six):
    model, x, y, tasks = six
    settings = GFISettings(basis="kronecker", threshold=0.5, normalize=False)

    def measured(tasks):
        generator = torch.Generator().manual_seed(0)
        return measure_importance(
            model, PAIRS["GFI3"], Batch([x, y, tasks]), settings, "gfi", generator
        )

    found, others = measured(tasks), measured(1 - tasks)
    trunk = "target.module.trunk.1.weight"
    assert found.basis.keys() == {trunk} and found.basis.folded == {trunk[:-6] + "bias"}
    for name in found.values.keys() - {trunk}:
        assert "classifiers" in name and not found.values[name].any() and found.shared[name] == 0
    torch.testing.assert_close(found.basis[trunk].left, others.basis[trunk].left)
    assert found.shared[trunk] != others.shared[trunk]


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_a_stream_of_tasks_trains_in_the_kronecker_basis(digits, alternate):
    model = coupled(target=Heads())
    sets = [digits(20), digits(20, seed=1)]
    benchmark = transfer_benchmark(sets, sets, task_labels=True)
    run = strategy(
        model, gfi=GFISettings(samples=8, basis="kronecker", threshold=0.5), alternate=alternate,
        train_epochs=2, dwa_lambda=0.1,
    )  # fmt: skip
    for experience in benchmark.train_stream:
        run.train(experience)
        assert all(run.round_losses[name] > 0 for name in ("DWA1", "DWA2", "DWA3"))


def test_code_and_classes_of_avalanches_network_with_heads_are_measured():
    model = MTSimpleCNN()
    code, classes = as_target(model).measure((3, 32, 32))
    assert (code, classes) == (64, 2)


def test_a_model_that_takes_no_task_labels_is_refused_with_the_remedy():
    made = coupled(target=Heads())
    with pytest.raises(TypeError, match=r"CoupledModel\.build"):
        CoupledModel(None, made.decoder, made.target, SHAPE)


def test_a_code_layer_that_one_task_runs_is_refused(digits):
    class Columns(MultiTaskModule):
        """A column of layers for each task."""

        def __init__(self):
            super().__init__()
            self.columns = nn.ModuleList(nn.Linear(64, 12) for _ in range(2))
            self.head = nn.Linear(12, 3)
            self.max_class_label = 3

        def forward_single_task(self, x, task_label):
            return self.head(self.columns[task_label](x.flatten(1)).relu())

    target = as_target(Columns(), "columns.0")
    x = digits(6)[0]
    with pytest.raises(ValueError, match="ran on 2 of 6 images"):
        target.encode(x, torch.tensor([0, 0, 1, 1, 1, 1]))
