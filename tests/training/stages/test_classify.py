import torch
from avalanche.core import SupervisedPlugin
from coupled_runs import SHAPE, strategy
from torch.nn import functional as F

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.training import ClassifyStage
from avalanche_cetl.training.stages import LabelledRows


def test_unlabelled_rows_are_left_out_of_the_mean():
    outputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, -1, 0, 1, -1, 1])
    found = LabelledRows.of(None)(outputs, labels)
    torch.testing.assert_close(found, F.cross_entropy(outputs[labels >= 0], labels[labels >= 0]))


def test_the_loss_of_no_labelled_row_is_zero_and_has_a_gradient_of_zero():
    outputs = torch.randn(2, 3, requires_grad=True)
    loss = LabelledRows.of(None)(outputs, torch.tensor([-1, -1]))
    loss.backward()
    assert float(loss.detach()) == 0 and not outputs.grad.any()


def test_real_valued_labels_are_all_known():
    outputs, labels = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0])
    assert float(LabelledRows.of(F.mse_loss)(outputs, labels)) == 4.0


def test_a_criterion_that_is_a_plugin_stays_as_it_is():
    plugin = SupervisedPlugin()
    assert LabelledRows.of(plugin) is plugin


def test_l_c_is_the_criterion_of_logits_and_labels():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, -1])
    rows = Batch([torch.rand(4, *SHAPE), labels, torch.zeros(4)])
    rows.logits = logits
    found = ClassifyStage().losses(strategy().networks, rows)
    torch.testing.assert_close(found, {"L_c": F.cross_entropy(logits[:3], labels[:3])})
