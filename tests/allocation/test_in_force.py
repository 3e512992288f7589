"""A penalty that is set and not in force is told."""

import copy
import warnings

import pytest
import torch
from avalanche.models import MultiTaskModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from avalanche_cetl import WeightPenalty

X = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def remembered(model, **arguments):
    penalty = WeightPenalty(**arguments)
    penalty.remember(model, X, Y)
    return penalty


def loop(penalty, model, optimizer, calls, steps=3):
    """Train, and call what is named of the penalty."""
    for _ in range(steps):
        loss = F.cross_entropy(model(X), Y)
        if "loss" in calls:
            loss = loss + penalty.loss(model, optimizer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if "step" in calls:
            penalty.step(model, optimizer)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1)


def adam(model):
    return torch.optim.Adam(model.parameters(), 1e-2)


@pytest.mark.parametrize(
    ("optimizer", "calls", "due"),
    [(sgd, ("loss",), "step"), (adam, ("step",), "loss")],
    ids=["loss under SGD", "step under Adam"],
)
def test_a_loop_that_calls_the_other_form_is_told(optimizer, calls, due):
    model = network()
    penalty = remembered(model)
    loop(penalty, model, optimizer(model), calls)
    with pytest.warns(UserWarning, match=rf"held nothing.*{due}\(model, optimizer\)"):
        penalty.remember(model, X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(penalty, model, optimizer(model), calls)
        penalty.remember(model, X, Y)  # once


def test_a_loop_of_many_iterations_is_told_before_the_task_ends():
    model = network()
    penalty = remembered(model)
    with pytest.warns(UserWarning, match="held nothing"):
        loop(penalty, model, sgd(model), ("loss",), steps=100)


def test_an_optimiser_of_copies_of_the_weights_is_told():
    model = network()
    penalty = remembered(model)
    master = copy.deepcopy(model)
    for _ in range(3):
        penalty.step(model, sgd(master))
    with pytest.warns(UserWarning, match="not copies of them"):
        penalty.remember(model, X, Y)


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("arguments", [{}, {"dwa_lambda": 0.0}], ids=["held", "strength 0"])
def test_a_loop_that_calls_both_is_told_nothing(optimizer, arguments):
    model = network()
    penalty = remembered(model, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(penalty, model, optimizer(model), ("loss", "step"), steps=101)
        penalty.remember(model, X, Y)


# ------------------------------------------------------------------ frozen parameters


def test_parameters_that_were_frozen_when_measured_and_train_now_are_named():
    model = network()
    model[0].requires_grad_(False)
    penalty = remembered(model)
    kept = WeightPenalty()
    kept.load_state_dict(penalty.state_dict())
    model[0].requires_grad_(True)
    for one in (penalty, kept):
        with pytest.warns(UserWarning, match=r"0\.bias, 0\.weight were frozen"):
            loop(one, model, sgd(model), ("loss", "step"))
        one.remember(model, X, Y)
        assert one.moved is None  # the quadratic does not know of them
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loop(one, model, sgd(model), ("loss", "step"))
        one.remember(model, X, Y)
        assert one.moved > 0


def test_parameters_that_stay_frozen_are_no_matter():
    model = network()
    model[0].requires_grad_(False)
    penalty = remembered(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(penalty, model, sgd(model), ("loss", "step"))
    penalty.remember(model, X, Y)
    assert penalty.moved > 0


# ------------------------------------------------------------------ tasks of a data set


class Named(Dataset):
    """Items with the task of each, as Avalanche's have, or an attribute with all of them."""

    def __init__(self, task, inside):
        self.task, self.inside = task, inside
        if not inside:
            self.targets_task_labels = [task] * 12

    def __len__(self):
        return 12

    def __getitem__(self, row):
        item = X[row].view(1, 2, 2), int(Y[row])
        return (*item, self.task) if self.inside else item


class TwoHeads(MultiTaskModule):
    def __init__(self):
        super().__init__()
        self.max_class_label = 3
        self.body, self.heads = nn.Linear(4, 6), nn.ModuleList([nn.Linear(6, 3) for _ in "01"])

    def forward_single_task(self, x, task_label):
        return self.heads[task_label](self.body(x.flatten(1)).tanh())


def two_heads():
    torch.manual_seed(0)
    return TwoHeads()


@pytest.mark.parametrize("inside", [True, False], ids=["in the items", "as an attribute"])
def test_the_tasks_of_a_data_set_choose_the_heads(inside):
    model = two_heads()
    wanted, penalty = WeightPenalty(), WeightPenalty()
    wanted.remember(model, X.view(12, 1, 2, 2), Y, torch.ones(12, dtype=torch.int64))
    penalty.remember(model, Named(1, inside))
    for name, value in wanted.importances[0].items():
        torch.testing.assert_close(penalty.importances[0][name], value)
    assert penalty.importances[0]["heads.1.weight"].any()


@pytest.mark.parametrize("images", [X.view(12, 1, 2, 2), TensorDataset(X.view(12, 1, 2, 2), Y)])
def test_a_network_with_heads_by_task_needs_tasks(images):
    with pytest.raises(ValueError, match="give tasks="):
        WeightPenalty().remember(two_heads(), images)


# ------------------------------------------------------------------ which classes have come


@pytest.mark.parametrize(
    "labels",
    [Y[:, None], Y.double(), F.one_hot(Y, 3), 0.9 * F.one_hot(Y, 3).float()],
    ids=["a column", "whole floats", "one-hot", "shares"],
)
def test_labels_of_any_form_say_which_classes_have_come(labels):
    model = nn.Linear(4, 6)
    found = []
    for given in (Y, labels):
        penalty = WeightPenalty()
        penalty.remember(model, X, given)
        assert penalty.measurer.seen.by_head == {0: [0, 1, 2]}
        found.append(penalty.importances[0]["weight"])
    torch.testing.assert_close(*found)


def test_targets_that_are_no_classes_say_none():
    for likelihood, targets in (("gaussian", torch.rand(12, 3)), ("bernoulli", Y[:, None] == 0)):
        penalty = WeightPenalty(likelihood=likelihood)
        penalty.remember(nn.Linear(4, 3 if likelihood == "gaussian" else 1), X, targets)
        assert penalty.measurer.seen.by_head == {}
