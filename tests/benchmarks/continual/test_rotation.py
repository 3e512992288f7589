"""EWC in rotated coordinates, against a loop over the images."""

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.supervised import Naive
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.continual.rotation import RotatedEWC


def test_the_penalty_is_that_of_each_tasks_squared_gradients_in_its_own_rotation():
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False)
    sets = []
    for _ in range(2):
        rows = TensorDataset(torch.randn(12, 5), torch.arange(12) % 3)
        rows.targets = torch.arange(12) % 3
        sets.append(as_classification_dataset(rows))
    plugin, ends = RotatedEWC(2.0), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    strategy = Naive(
        model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), train_mb_size=6,
        plugins=[plugin], evaluator=None,
    )  # fmt: skip
    for experience in benchmark_from_datasets(train=sets).train_stream:
        strategy.train(experience)
        ends.append(model.weight.detach().clone())

    strategy.loss = torch.zeros(())
    plugin.before_backward(strategy)
    wanted = 0.0
    for rows, end in zip(sets, ends, strict=True):
        images = torch.stack([row[0] for row in rows])
        labels = torch.tensor([int(row[1]) for row in rows])
        weight = end.clone().requires_grad_()
        losses = F.cross_entropy(images @ weight.T, labels, reduction="none")
        gradients = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in losses]
        inputs = torch.linalg.eigh((images.T @ images).double())[1].float()
        outputs = F.softmax(images @ end.T, 1) - F.one_hot(labels, 3)
        outputs = torch.linalg.eigh((outputs.T @ outputs).double())[1].float()
        fisher = sum((outputs.T @ one @ inputs).square() for one in gradients) / len(gradients)
        apart = outputs.T @ (model.weight.detach() - end) @ inputs
        wanted = wanted + 2.0 / 2 * (fisher * apart.square()).sum()
    torch.testing.assert_close(strategy.loss.detach(), wanted, rtol=1e-3, atol=1e-7)
    assert wanted > 0
