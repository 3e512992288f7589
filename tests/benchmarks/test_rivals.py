"""The rivals' losses on cases worked by hand, and their training in a small form."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

from avalanche_cetl import CICNN

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "rivals").is_dir(), reason="the benchmarks are in the repository"
)


@pytest.fixture
def rival(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    found = sys.modules.get("benchmarks")
    if found is not None and str(ROOT) not in str(found.__file__):
        monkeypatch.delitem(sys.modules, "benchmarks")
    return lambda name: importlib.import_module(f"benchmarks.rivals.{name}")


def test_association_by_hand(rival):
    """Two source codes of two classes, two target codes, inner products log 3 or 0."""
    a = math.log(3)
    source = torch.tensor([[a, 0.0], [0.0, a]])
    target = torch.eye(2)
    labels = torch.tensor([0, 1])
    # There and back each go to the like code with 3/4: home with 9/16 + 1/16 = 5/8.
    walker, visit = -math.log(5 / 8), math.log(2)
    found = rival("association").association_loss(source, labels, target, visit_weight=0.5)
    assert float(found) == pytest.approx(walker + 0.5 * visit)
    same = rival("association").association_loss(source, torch.zeros(2), target, 0.0)
    assert float(same) == pytest.approx(-(math.log(5 / 8) + math.log(3 / 8)) / 2)


def test_weighted_mmd_by_hand(rival):
    module = rival("weighted_mmd")
    source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0]])
    # Distances 0, 4, 4 in all pairs of three: their mean over ordered pairs is 8/3.
    scale = 8 / 3

    def kernel(squared):
        return sum(math.exp(-squared / (w * scale)) for w in module.WIDTHS) / len(module.WIDTHS)

    wanted = (1 + 1 + 2 * kernel(4)) / 4 + 1 - (1 + kernel(4))
    found = module.weighted_mmd(source, torch.ones(2), target)
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    # All weight on the sample that the target has: nothing is left.
    assert float(module.weighted_mmd(source, torch.tensor([3.0, 0.0]), target)) == pytest.approx(
        0, abs=1e-6
    )


def test_class_weights_by_hand(rival):
    found = rival("weighted_mmd").class_weights(
        torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 2]), 3
    )
    assert found.tolist() == pytest.approx([(1 / 4) / (3 / 4), (2 / 4) / (1 / 4), 0])


def test_adda_by_hand(rival):
    module = rival("adda")
    logit = torch.tensor([math.log(3)])  # taken for the source with 3/4
    found = module.discriminator_loss(logit, logit)
    assert float(found) == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2)
    assert float(module.mapping_loss(logit)) == pytest.approx(-math.log(3 / 4))


def test_pairs_see_the_longer_set_once(rival, digits):
    x, y = digits(10)
    z = torch.arange(25.0).view(25, 1, 1, 1)
    seen = list(rival("training").pairs((x, y), z, 8, lambda images: images))
    rows = torch.cat([part for _, _, part in seen]).flatten().tolist()
    assert len(set(rows)) == len(rows) == 24  # the last row alone would be a batch of one
    assert all(len(a) == len(b) == len(c) for a, b, c in seen)


@pytest.mark.parametrize("name", ["association", "weighted_mmd", "adda"])
def test_each_trains(rival, digits, name):
    torch.manual_seed(0)
    network = CICNN(3, (1, 8, 8), width=0.1)
    source, target = digits(60), digits(45, seed=1, shift=0.1)
    options = {"epochs": 8, "batch": 16, "learning_rate": 5e-3, "augment": lambda x: x}
    rival(name).train(network, source, target[0], **options)
    found = rival("training").predictions(network, target[0])
    assert float((found == target[1]).float().mean()) > 0.5
