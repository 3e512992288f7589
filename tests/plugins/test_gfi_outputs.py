"""The outputs, likelihoods and heads through which GFIPlugin reads a network."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
from avalanche.core import SupervisedPlugin
from gfi_runs import assert_close, rows_of, with_heads
from gfi_runs import network as dropping
from gfi_runs import train as trained
from naive_gradients import mean_squares
from networks import Of
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import GFIPlugin
from avalanche_cetl.allocation.output_likelihood import OutputLikelihood

ROWS = 12


def stream(tasks, targets=None):
    """Experiences of rows whose task labels are given, one list an experience."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for labels in tasks:
        x = torch.randn(len(labels), 6, generator=generator)
        y = torch.arange(len(labels)) % 2 if targets is None else targets
        x[:, 0] += 2 * (torch.arange(len(labels)) % 2)
        data = torch.utils.data.TensorDataset(x, y)
        attributes = [DataAttribute(y.tolist(), "targets"), TaskLabels(labels)]
        sets.append(TaskAwareSupervisedClassificationDataset([data], data_attributes=attributes))
    benchmark = benchmark_from_datasets(train=sets)
    return with_classes_timeline(with_task_labels(benchmark)).train_stream


def network(outputs=2):
    return dropping(outputs, dropout=0)


def train(model, plugin, experiences, *others, criterion=None):
    return trained(model, [plugin, *others], experiences, 1, batch=4, criterion=criterion)


class Binary(nn.BCEWithLogitsLoss):
    def forward(self, outputs, labels):
        return super().forward(outputs.flatten(), labels.float())


@pytest.mark.parametrize("fisher", ["empirical", "sampled"])
def test_importances_of_one_logit_are_those_of_binary_cross_entropy(fisher):
    plugin = GFIPlugin(1.0, fisher=fisher, likelihood="bernoulli", basis="diagonal")
    experiences = stream([[0] * ROWS] * 2)
    run = train(network(1), plugin, experiences, criterion=Binary())
    assert plugin.gated == {} and set(plugin.shared) == {0}
    if fisher == "empirical":
        x, y, _ = rows_of(experiences[1])
        out = run.model(x).flatten()
        losses = F.binary_cross_entropy_with_logits(out, y.float(), reduction="none")
        assert_close(plugin.importances[1], mean_squares(run.model, losses))


def test_importances_of_real_values_are_those_of_a_squared_error():
    y = torch.randn(ROWS, generator=torch.Generator().manual_seed(3))
    experiences = stream([[0] * ROWS])
    data = torch.utils.data.TensorDataset(rows_of(experiences[0])[0], y)
    attributes = [DataAttribute([0] * ROWS, "targets"), TaskLabels([0] * ROWS)]
    dataset = TaskAwareSupervisedClassificationDataset([data], data_attributes=attributes)
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=[dataset])))
    plugin = GFIPlugin(1.0, fisher="empirical", likelihood="gaussian", basis="diagonal")
    run = train(
        network(1), plugin, benchmark.train_stream,
        criterion=lambda out, y: F.mse_loss(out.flatten(), y),
    )  # fmt: skip
    losses = (run.model(rows_of(experiences[0])[0]).flatten() - y).square() / 2
    assert_close(plugin.importances[0], mean_squares(run.model, losses))


def several(make):
    return Of(lambda m, x: make(m.inner(x), x), inner=network())


PICKS = {
    "index": (lambda out, x: (x, out), 1, lambda found: found[1]),
    "key": (lambda out, x: {"logits": out}, "logits", lambda found: found["logits"]),
    "callable": (lambda out, x: (x, [out]), lambda f: f[1][0], lambda found: found[1][0]),
}


@pytest.mark.parametrize("name", PICKS)
def test_the_logits_are_picked_out_of_the_output(name):
    make, output, pick = PICKS[name]
    plain, picked = (GFIPlugin(1.0, basis="diagonal", output=one) for one in (None, output))
    experiences = stream([[0] * ROWS] * 2)
    train(network(), plain, experiences)
    train(
        several(make), picked, experiences,
        criterion=lambda found, y: F.cross_entropy(pick(found), y),
    )  # fmt: skip
    own = {n.removeprefix("inner."): v for n, v in picked.importances[1].items()}
    assert_close(own, plain.importances[1])


REFUSED = {
    "one logit": (lambda: network(1), {}, Binary(), "likelihood='bernoulli'"),
    "a tuple": (lambda: several(lambda out, x: (out, x)), {}, None, "gave tuple.*output="),
    "no such part": (lambda: several(lambda out, x: (out,)), {"output": 3}, None, "output=3"),
    "pixels": (
        lambda: nn.Sequential(network(4), nn.Unflatten(1, (2, 2))), {}, None, r"\(2, 2, 2\)",
    ),
    "many logits for one label": (
        lambda: network(3), {"likelihood": "bernoulli", "basis": "diagonal"}, None,
        "one target for each output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_outputs_without_a_likelihood_are_refused_before_the_first_experience(name):
    make, arguments, criterion, told = REFUSED[name]
    model = make()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=told):
        train(model, GFIPlugin(1.0, **arguments), stream([[0] * ROWS]), criterion=criterion)
    assert all(map(torch.equal, before, model.parameters()))


def test_labels_out_of_range_for_yes_or_no_are_named():
    experiences = stream([[0] * ROWS], torch.arange(ROWS) % 3)
    plugin = GFIPlugin(1.0, fisher="empirical", likelihood="bernoulli", basis="diagonal")
    with pytest.raises(ValueError, match=r"is 2 .* needs values in \[0, 1\]"):
        train(network(1), plugin, experiences, criterion=Binary())


def test_labels_drawn_for_images_stay_with_them_when_the_data_set_is_replaced(monkeypatch):
    class Replace(SupervisedPlugin):
        """Puts another data set in the experience, after rows of the first were drawn."""

        def before_train_dataset_adaptation(self, strategy, *args, **kwargs):
            small = strategy.experience.dataset.subset(range(4))
            monkeypatch.setattr(type(strategy.experience), "dataset", small)

        def after_training_exp(self, strategy, *args, **kwargs):
            monkeypatch.undo()

    measured = []

    class Watched(OutputLikelihood):
        def targets(self, model, sample, *args):
            measured.append(sample.images.clone())
            return super().targets(model, sample, *args)

    experiences = stream([[0] * ROWS] * 2)
    plugin = GFIPlugin(1.0, basis="diagonal")
    plugin.measurer.likelihood = Watched()
    train(network(), plugin, experiences, Replace())
    _, images, _ = measured  # at the end of either experience, and for the gate between
    assert torch.equal(images, rows_of(experiences[1])[0])


def test_mixed_task_labels_are_read_through_each_images_own_head():
    experiences = stream([[0, 1, 1] * 4])
    plugin = GFIPlugin(1.0, fisher="empirical", basis="diagonal")
    run = train(with_heads(), plugin, experiences)
    x, y, t = rows_of(experiences[0])
    losses = F.cross_entropy(run.model(x, t), y, reduction="none")
    assert_close(plugin.importances[0], mean_squares(run.model, losses))


def test_mixed_experiences_are_gated_and_held():
    plugin = GFIPlugin(1.0, basis="diagonal")
    run = train(with_heads(), plugin, stream([[0, 1] * 6, [1, 2] * 6, [3] * ROWS]))
    tasks = {0: (0, 1), 1: (1, 2), 2: (3,)}
    assert plugin.importances.keys() == tasks.keys()
    for experience, own in tasks.items():
        for name, value in plugin.importances[experience].items():
            if "classifiers" in name:
                assert (float(value.sum()) > 0) == (int(name.split(".")[2]) in own)
    # Experience 2 reads none of the old heads: it shares the trunk with both alone.
    for old in (0, 1):
        assert plugin.shared[old]["trunk.1.weight"] > 0
        assert all(v == 0 for n, v in plugin.shared[old].items() if "classifiers" in n)
    assert all(p.isfinite().all() for p in run.model.parameters())
