"""Which classes have come, and what their outputs weigh."""

import logging
import math

import pytest
import torch
from networks import Heads
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_cetl import WeightPenalty
from avalanche_cetl.allocation.sample import TaskSample, rows_of
from avalanche_cetl.allocation.seen import SeenClasses, classes_of
from avalanche_cetl.information import every_output_vector, fisher_information, projected_outputs


def network(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, classes))


def task(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), 5, generator=generator), torch.tensor(labels)


def test_weights_are_1_where_a_class_has_come():
    seen = SeenClasses(0.25)
    assert seen.weights(0, 3) is None
    seen.add({(0, 2), (0, 0), (1, 5)})
    seen.add({(0, 0)})
    assert seen.by_head == {0: [0, 2], 1: [5]}
    assert seen.weights(0, 3).tolist() == [1, 0.25, 1]
    assert seen.weights(1, 3) is None  # the head is narrower than its class
    with pytest.raises(ValueError, match="unseen=2"):
        SeenClasses(2.0)


LABELS = {
    "unknown ones": (torch.tensor([3, -1, 1]), {(0, 1), (0, 3)}),
    "real values": (torch.tensor([0.5, 1.0, 2.0]), set()),
    "rows of shares": (torch.tensor([[0.0, 1], [0.5, 0], [0, 0]]), {(0, 0), (0, 1)}),
    "maps": (torch.zeros(3, 2, 2, dtype=torch.long), set()),
    "none": (None, set()),
}


@pytest.mark.parametrize("name", LABELS)
def test_classes_are_whole_numbers_from_0(name):
    labels, wanted = LABELS[name]
    rows = rows_of(torch.zeros(3, 5), labels, None, network())
    assert classes_of(rows, rows.read([0, 1, 2]), False) == wanted


def test_classes_of_all_rows_count_and_those_that_a_data_set_makes_on_the_way():
    rows = rows_of(torch.zeros(3, 5), torch.tensor([0, 1, 2]), torch.tensor([0, 4, 4]), network())
    assert classes_of(rows, rows.read([0]), True) == {(0, 0), (4, 1), (4, 2)}
    turned = TaskSample(torch.zeros(1, 5), torch.tensor([7]), torch.tensor([0]))
    assert classes_of(rows, turned, False) == {(0, 7)}


def exact(model, x, weights):
    vectors = every_output_vector(model(x).detach(), weights=torch.tensor(weights))
    inputs = torch.cat([x] * len(vectors))
    return fisher_information(model, inputs, projected_outputs, targets=vectors.flatten(0, 1))


def test_what_is_measured_weighs_classes_by_whether_they_have_come():
    x, y = task([0, 1] * 8)
    own, model = WeightPenalty(basis="diagonal", dwa_lambda=1.0, fisher="logits", unseen=0.0,
        normalize=False, threshold=0, probability=1), network()  # fmt: skip
    # Two classes have one direction, which one vector an image measures exactly.
    own.remember(model, x, y)
    wanted = exact(model, x, [1.0, 1.0, 0.0, 0.0])
    for name, value in wanted.items():
        torch.testing.assert_close(own.importances[0][name], value, rtol=1e-4, atol=1e-8)
    own.remember(model, *task([2, -1] * 8))
    assert own.measurer.seen.by_head == {0: [0, 1, 2]}
    assert not own.importances[1]["2.bias"][3] and own.importances[1]["2.bias"][0] > 0
    own.remember(model, x)  # without labels it may be of any class
    assert own.importances[2]["2.bias"][3] > 0


def test_labels_of_a_data_set_are_those_of_its_drawn_images():
    own = WeightPenalty()
    own.remember(network(), TensorDataset(*task([3, 1] * 4)))
    assert own.measurer.seen.by_head == {0: [1, 3]}
    other = WeightPenalty()
    other.load_state_dict(own.state_dict())
    assert other.measurer.seen.by_head == {0: [1, 3]}


def test_every_head_has_classes_of_its_own():
    torch.manual_seed(0)
    own, model = WeightPenalty(unseen=0.0), Heads(5, 6, 4)
    first = model.classifier.classifiers["0"]
    model.classifier.classifiers["1"] = type(first)(6, 4)
    x, y = task([0, 1, 2, 3])
    own.remember(model, x, y, torch.tensor([0, 0, 1, 1]))
    assert own.measurer.seen.by_head == {0: [0, 1], 1: [2, 3]}


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_the_movement_that_is_told_is_that_of_the_outputs(basis, caplog):
    x, y = task([0, 1] * 32)
    model = nn.Linear(5, 2)
    own = WeightPenalty(1.0, basis=basis, fisher="logits", normalize=False, threshold=0,
        probability=1, rank=400)  # fmt: skip
    with caplog.at_level(logging.INFO, logger="avalanche_cetl"):
        own.remember(model, x, y)
        assert own.moved is None
        before = model(x).detach()
        with torch.no_grad():
            model.weight[0, 2] += 0.3
        own.remember(model, x, y)
    change = model(x).detach() - before  # linear, so that the first order is all there is
    wanted = float(change.var(1, correction=0).mean().sqrt())
    tolerance = 1e-4 if basis == "diagonal" else 0.6  # off-diagonal entries are left out
    assert math.isclose(own.moved, wanted, rel_tol=tolerance) and own.moved > 0
    first, second = [one.getMessage() for one in caplog.records if "task" in one.getMessage()]
    assert first == "task 0: 64 images and 2 outputs are measured"
    assert f"moved by {own.moved:.3g}" in second
    own.remember(model, x, y)
    assert basis == "diagonal" or own.moved == 0  # since the task before
    rescaled = WeightPenalty(1.0, normalize=True)
    rescaled.remember(model, x, y)
    rescaled.remember(model, x, y)
    assert rescaled.moved is None
