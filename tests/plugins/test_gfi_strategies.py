"""GFIPlugin in Avalanche's strategies: which rows are measured, when it acts, what it warns of."""

import warnings

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.training.supervised import Cumulative, JointTraining, Naive
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import CETLStrategy, CoupledModel, GFIPlugin, ModuleEncoder, transfer_benchmark
from avalanche_cetl.plugins.gfi import NEW_CLASSES

SHAPE = (1, 3, 2)


def network(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))


def benchmark(new_classes=True, count=12):
    """Two experiences, of two new classes each or of the same two."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number in range(2):
        x = torch.rand(count, *SHAPE, generator=generator)
        parts.append((x, torch.arange(count) % 2 + 2 * number * new_classes))
    return transfer_benchmark(parts, parts)


def strategy(kind, model, plugin, **arguments):
    torch.manual_seed(1)
    given = {"criterion": nn.CrossEntropyLoss(), "train_mb_size": 6, "evaluator": None} | arguments
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return kind(model=model, optimizer=optimizer, plugins=[plugin], **given)


def told(train):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train()
    return [str(one.message) for one in found if "experience" in str(one.message)]


def test_joint_training_measures_all_experiences():
    plugin, read = GFIPlugin(), []
    drawn = plugin.measurer.sample
    plugin.measurer.sample = lambda rows: read.append(rows.length) or drawn(rows)
    strategy(JointTraining, network(), plugin).train(benchmark().train_stream)
    assert read == [24] and plugin.measurer.seen.by_head == {0: [0, 1, 2, 3]}


# ------------------------------------------------------------------ accumulated gradients


class Accumulating(Naive):
    """Steps once for four mini-batches."""

    done = 0

    def backward(self):
        (self.loss / 4).backward()

    def optimizer_step(self):
        self.done += 1
        if self.done % 4 == 0:
            self.optimizer.step()
            type(self.optimizer).zero_grad(self.optimizer)


@pytest.mark.parametrize("penalty", ["proximal", "loss"])
def test_the_penalty_of_accumulated_gradients_is_that_of_whole_mini_batches(penalty):
    found = []
    for kind, size in ((Naive, 24), (Accumulating, 6)):
        plugin, model = GFIPlugin(50.0, penalty=penalty), network(2)
        one = strategy(kind, model, plugin, train_mb_size=size, train_epochs=3)
        if kind is Accumulating:
            one.optimizer.zero_grad = lambda *_, **__: None  # as training calls it
        for experience in benchmark(new_classes=False, count=24).train_stream:
            one.train(experience, shuffle=False)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()], ids=["MSE", "BCE"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_a_loss_that_is_none_of_classes_is_named(loss, likelihood):
    class Shares(type(loss)):
        def forward(self, outputs, labels):
            return super().forward(outputs, F.one_hot(labels, 4).float())

    plugin = GFIPlugin(likelihood=likelihood)
    plugin.measurer.check = lambda *_: 4  # labels are made real in the loss alone
    one = strategy(Naive, network(), plugin, criterion=Shares())
    one.experience = benchmark().train_stream[0]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        plugin.before_training_exp(one)
    texts = [str(w.message) for w in found if "the criterion is Shares" in str(w.message)]
    assert len(texts) == (likelihood == "categorical")
    assert all("'gaussian'" in text and "'bernoulli'" in text for text in texts)


class Smoothed(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), Smoothed(), F.cross_entropy])
def test_cross_entropy_in_any_form_over_new_classes_is_warned_of(criterion):
    one = strategy(Naive, network(), GFIPlugin(), criterion=criterion)
    assert told(lambda: one.train(benchmark().train_stream)) == [NEW_CLASSES]


def test_new_classes_are_warned_of_in_cetl():
    source = ModuleEncoder(network(), input_shape=SHAPE)
    model = CoupledModel.build(source, network(), SHAPE)
    one = strategy(CETLStrategy, model, GFIPlugin())
    assert told(lambda: one.train(benchmark().train_stream)) == [NEW_CLASSES]


@pytest.mark.parametrize("kind", [Cumulative, JointTraining])
def test_strategies_that_train_on_old_images_too_lose_no_class(kind):
    one = strategy(kind, network(), GFIPlugin())
    assert told(lambda: one.train(benchmark().train_stream)) == []


@pytest.mark.parametrize("new_classes", [False, True])
def test_pieces_of_an_experience_bring_the_classes_of_the_whole(new_classes):
    pieces = split_online_stream(benchmark(new_classes).train_stream, experience_size=1)
    one = strategy(Naive, network(), GFIPlugin(), train_mb_size=1)
    assert told(lambda: [one.train(piece) for piece in pieces]) == [NEW_CLASSES] * new_classes
