import math

import pytest
import torch
from torch import nn

from avalanche_cetl.allocation.proximal import Pull


def held(experiences=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    pull, kept = Pull(), []
    for _ in range(experiences):
        importance = torch.rand(7, generator=generator, dtype=dtype)
        importance[0] = 0
        anchor = torch.randn(7, generator=generator, dtype=dtype)
        kept.append((importance, anchor))
        pull.add({"w": importance}, {"w": anchor})
    return pull, kept


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e6])
def test_the_step_solves_the_implicit_equation_of_all_experiences_penalties(strength):
    pull, kept = held()
    before = torch.randn(7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    parameter = nn.Parameter(before.clone())
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=0.3), strength)
    for i in range(7):
        now = float(parameter[i].detach())
        gradient = sum(strength * float(f[i]) * (now - float(a[i])) for f, a in kept)
        assert now - float(before[i]) + 0.3 * gradient == pytest.approx(
            0, abs=1e-9 * (1 + strength)
        )
    assert parameter[0] == before[0]


def test_small_steps_agree_with_a_penalty_in_the_loss_to_first_order():
    pull, kept = held()
    before = torch.randn(7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradient = sum(f * (before - a) for f, a in kept)
    errors = []
    for rate in (1e-3, 1e-4):
        parameter = nn.Parameter(before.clone())
        pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=rate), 1.0)
        errors.append(float((parameter - (before - rate * gradient)).abs().max()))
    assert errors[0] < 1e-4 and errors[1] < 0.011 * errors[0]


@pytest.mark.parametrize("strength", [1e30, 1e300, math.inf])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_no_strength_overflows_in_float32(strength, scale):
    pull = Pull()
    anchors = torch.tensor([1.0, 2.0, 3.0])
    for _ in range(3):
        pull.add({"w": torch.tensor([0.0, 1.0, 2.0]) * scale}, {"w": anchors})
    parameter = nn.Parameter(torch.zeros(3))
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=0.1), strength)
    if strength * scale > 1e20:
        assert parameter.tolist() == [0.0, 2.0, 3.0]
    assert parameter.isfinite().all() and parameter[0] == 0


def test_each_group_pulls_at_its_own_rate_and_what_the_optimiser_does_not_hold_stays():
    params = {n: nn.Parameter(torch.ones(2, dtype=torch.float64)) for n in "abcd"}
    params["d"].requires_grad_(False)
    pull = Pull()
    ones = {n: torch.ones(2, dtype=torch.float64) for n in "abcd"}
    pull.add(ones, {n: 0 * v for n, v in ones.items()})
    groups = [
        {"params": [params["a"]], "lr": 1.0},
        {"params": [params["b"], params["d"]], "lr": torch.tensor(3.0)},
    ]
    pull.step(params, torch.optim.Adam(groups, foreach=False), 1.0)
    found = {name: float(p[0]) for name, p in params.items()}
    assert found == pytest.approx({"a": 1 / 2, "b": 1 / 4, "c": 1.0, "d": 1.0})


def test_half_precision_weights_are_pulled():
    pull = Pull()
    pull.add({"w": torch.ones(2)}, {"w": torch.zeros(2, dtype=torch.bfloat16)})
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=1.0), 1.0)
    assert parameter.tolist() == [0.5, 0.5]
