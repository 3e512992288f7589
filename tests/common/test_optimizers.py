import pytest
import torch
from torch import nn

from avalanche_cetl.common.optimizers import optimizer_like


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad"])
def test_another_optimiser_of_the_class_has_its_groups_and_no_moments(name):
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    template = getattr(torch.optim, name)(first.parameters(), lr=0.5, weight_decay=0.25)
    first(torch.ones(1, 2)).sum().backward()
    template.step()
    template.param_groups[0]["lr"] = 0.125  # as a scheduler does
    group = template.param_groups[0]
    made = optimizer_like(template, [group | {"params": list(second.parameters())}, {"params": []}])
    assert type(made) is type(template) and all(p not in made.state for p in first.parameters())
    assert [g["lr"] for g in made.param_groups] == [0.125, 0.5]
    assert [g["weight_decay"] for g in made.param_groups] == [0.25, 0.25]
    before = second.weight.detach().clone()
    second(torch.ones(1, 2)).sum().backward()
    made.step()
    assert not torch.equal(second.weight, before)
