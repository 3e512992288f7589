"""The rows that chose the preset's teacher, on a tiny task, and their table."""

import pytest
import torch

from avalanche_cetl import CICNN, ModuleEncoder
from benchmarks.suite import teachers
from benchmarks.suite.tasks import Data, Task

SHAPE = (1, 8, 8)


def data(count=40, known=20):
    torch.manual_seed(0)
    x, y = torch.rand(count, *SHAPE), torch.arange(count) % 10
    source = ModuleEncoder(CICNN(10, SHAPE, width=0.05), input_shape=SHAPE)
    hidden = torch.where(torch.arange(count) < known, y, -1)
    return Data((x, hidden), (x, y), (x, y), source)


@pytest.fixture
def task():
    return Task(lambda _root, _seed: data(), "few", True, 1, lambda images: images)


@pytest.mark.parametrize(
    "row",
    [
        "T2 alone", "C=1e-3, logits standardised, weight 10", "C chosen, weight 3, falling",
        "C chosen, weight 3, by entropy", teachers.AS_IT_COMES,
    ],
)  # fmt: skip
def test_every_row_trains_and_is_measured(task, row):
    found = teachers.run(task, row, data(), 0)
    assert 0 <= found["accuracy"] <= 100


def test_weights_fall_with_the_labels_where_they_should():
    assert teachers.ROWS["version 0.2: C=1e-3, weight 10"].plugin(data()).weight == 10
    many = data(400, 400)
    assert teachers.Teacher(1e-3, 10.0, by_labels=True).plugin(many).weight == 2.5
    assert teachers.Teacher(1e-3, 10.0).plugin(many).weight == 10


def test_rows_count_by_how_sure_the_teacher_is():
    head = torch.nn.Identity()
    batch = teachers.Batch([torch.zeros(2, 3), torch.zeros(2), torch.zeros(2)])
    batch.features = torch.tensor([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    batch.logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])

    def loss(least, rows):
        plugin = teachers.BySureness(least, temperature=2.0, head=head)
        plugin.teacher_logits = lambda *_: batch.features[rows]
        part = teachers.Batch([part[rows] for part in batch.tensors])
        part.logits = batch.logits[rows]
        return float(plugin.loss(None, part))

    both = slice(None)
    assert loss(0.8, both) == pytest.approx(loss(0.8, [0]) / 2) and loss(0.8, [1]) == 0
    assert loss(None, [0]) > 100 * loss(None, [1]) > 0


def test_the_kept_table_is_that_of_the_kept_runs():
    assert (teachers.FOLDER / "teachers.md").read_text() == teachers.table()
