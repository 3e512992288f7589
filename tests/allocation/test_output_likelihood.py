from types import SimpleNamespace

import pytest
import torch
from avalanche.models import MultiHeadClassifier
from networks import Heads, Of
from torch import nn

from avalanche_cetl.allocation.output_likelihood import OutputLikelihood
from avalanche_cetl.allocation.sample import TaskSample


def network(outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))


@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_unknown_labels_are_drawn_and_known_ones_stay(name):
    model = network(2 if name == "categorical" else 1)
    labels = torch.tensor([0, -1, 1, -1] * 50)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    likelihood, generator = OutputLikelihood(name), torch.Generator().manual_seed(0)
    found = likelihood.targets(model, TaskSample(x, labels, torch.zeros(200)), generator)
    assert torch.equal(found[labels >= 0], labels[labels >= 0].to(found))
    assert set(found[labels < 0].tolist()) == {0, 1}
    with pytest.raises(ValueError, match=r"targets\[1\] is nan"):
        nan = torch.tensor([0.0, float("nan")])
        likelihood.targets(model, TaskSample(x[:2], nan, torch.zeros(2)), generator)


def test_a_network_that_writes_into_its_input_leaves_the_images():
    writes = Of(lambda m, x: m.inner(x.sub_(0.5)), inner=network())
    x = torch.randn(4, 6)
    before = x.clone()
    OutputLikelihood().draw(writes, x, torch.zeros(4), torch.Generator())
    assert torch.equal(x, before)


def heads():
    """Heads of the tasks 0 and 1."""
    model = Heads(6, 5, 2)
    for task in (0, 1):
        model.classifier.adaptation(
            SimpleNamespace(classes_in_this_experience=[0, 1], task_labels=[task])
        )
    return model


def test_targets_are_drawn_from_each_images_own_head():
    model = heads()
    with torch.no_grad():
        for task, sign in (("0", 50.0), ("1", -50.0)):
            model.classifier.classifiers[task].classifier.bias.copy_(torch.tensor([sign, -sign]))
    tasks = torch.tensor([0, 1, 1, 0, 1])
    drawn = OutputLikelihood().draw(
        model, torch.zeros(5, 6), tasks, torch.Generator().manual_seed(0)
    )
    assert torch.equal(drawn, tasks)


def test_targets_are_drawn_for_few_images_at_once():
    largest = []

    def watching(m, x):
        largest.append(len(x))
        return m.layer(x.flatten(1))

    tasks = torch.zeros(600, dtype=torch.long)
    generator = torch.Generator().manual_seed(3)
    model, x = Of(watching, layer=nn.Linear(64, 6)), torch.rand(600, 1, 8, 8)
    drawn = OutputLikelihood().draw(model, x, tasks, generator)
    assert max(largest) == 256 and drawn.shape == (600,)


@pytest.mark.parametrize("masking", [False, True])
def test_vectors_are_those_of_each_images_own_head(masking):
    """Heads of two and of five units; of the five the last two are seen."""
    model = heads()
    model.classifier = MultiHeadClassifier(5, 2, masking=masking)
    for task, classes in ((0, [0, 1]), (1, [3, 4])):
        model.classifier.adaptation(
            SimpleNamespace(classes_in_this_experience=classes, task_labels=[task])
        )
    tasks = torch.tensor([0, 1, 1, 0, 1])
    x, generator = torch.randn(5, 6), torch.Generator().manual_seed(0)
    drawn = OutputLikelihood().draw(model, x, tasks, generator, "logits")
    own = torch.full((5, 5), masking)
    own[:, 3:] = False
    own[tasks == 0] = torch.tensor([False, False, True, True, True])
    assert torch.equal(drawn == 0, own)
    count = (drawn != 0).sum(1)
    torch.testing.assert_close(drawn.sum(1), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn.square().sum(1), (count - 1) / count)
    loss, targets = OutputLikelihood().view(model, tasks).task(drawn, tasks, "logits")
    found = loss(tuple(model(x, torch.full((5,), task)) for task in (0, 1)), targets)
    torch.testing.assert_close(found, (model(x, tasks) * drawn).sum(1))


def test_vectors_of_heads_that_are_not_filled_up_have_the_width_of_the_widest():
    class Ragged(Heads):
        def forward(self, x, task_labels):
            return x[:, : 2 + int(task_labels[0])]

    tasks = torch.tensor([2, 0, 1, 0])
    x, generator = torch.randn(4, 6), torch.Generator().manual_seed(0)
    model = Ragged(6, 5, 2)
    drawn = OutputLikelihood("gaussian").draw(model, x, tasks, generator, "logits")
    assert (drawn != 0).sum(1).tolist() == [4, 2, 3, 2]
    loss, targets = OutputLikelihood("gaussian").view(model, tasks).task(drawn, tasks, "logits")
    found = loss(tuple(x[:, :k] for k in (2, 3, 4)), targets)
    torch.testing.assert_close(found, (x[:, :4] * drawn).sum(1))


@pytest.mark.parametrize("by_head", [False, True])
def test_classes_are_asked_for_by_head_and_of_a_network_without_heads_under_0(by_head):
    model = heads() if by_head else nn.Linear(6, 4)
    if by_head:
        model.classifier = MultiHeadClassifier(5, 4, masking=False)
        for task in (1, 2):
            seen = SimpleNamespace(classes_in_this_experience=[0], task_labels=[task])
            model.classifier.adaptation(seen)
    asked = []

    def weights(head, count):
        asked.append((head, count))
        return torch.ones(count)

    tasks = torch.tensor([2, 1, 1, 2])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 6)
    OutputLikelihood().draw(model, images, tasks, generator, "logits", weights)
    assert sorted(asked) == ([(1, 4), (2, 4)] if by_head else [(0, 4)])
