"""Damping: an importance that all weights of a layer have besides that of its directions."""

import copy

import pytest
import torch
from torch import nn

from avalanche_cetl.allocation import WeightPenalty


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, outputs))


def remembered(damping, rank=2, model=None, **options):
    """A penalty of one task, whose basis leaves some directions out."""
    model = network() if model is None else model
    penalty = WeightPenalty(3.0, rank=rank, damping=damping, **options)
    torch.manual_seed(1)
    penalty.remember(model, torch.randn(40, 5))
    return penalty, model


def moved(model, seed=2):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))


def means(penalty, model):
    """The mean importance that a parameter's weights have, by name; a layer's bias is its row."""
    penalty.hold(model)
    found, shapes = {}, {n: p.numel() for n, p in model.named_parameters()}
    for name, value in penalty.store.quadratic.importance.items():
        layer = penalty.store.quadratic.basis.get(name)
        own = [name] if layer is None else layer.parameters
        mean = float(value.sum()) / sum(shapes[one] for one in own)
        found |= dict.fromkeys(own, mean)
    return found


@pytest.mark.parametrize("rank", [2, 64])
def test_the_loss_has_a_share_of_the_mean_importance_for_every_weight(rank):
    plain, model = remembered(0.0, rank)
    damped, _ = remembered(0.5, rank)
    at = {n: p.detach().clone() for n, p in model.named_parameters()}
    moved(model)
    optimizer = torch.optim.Adam(model.parameters())
    more = sum(
        3.0 / 2 * 0.5 * mean * float((model.get_parameter(name) - at[name]).square().sum())
        for name, mean in means(plain, model).items()
    )
    wanted = float(plain.loss(model, optimizer)) + more
    assert float(damped.loss(model, optimizer)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("rank", [2, 64])
def test_the_step_is_the_proximal_operator_of_the_damped_penalty(rank):
    """Its first-order condition: what the step took is the gradient of the penalty after it."""
    damped, model = remembered(0.5, rank)
    moved(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.7)
    damped.step(model, optimizer)
    loss = damped.store.quadratic.penalty(dict(model.named_parameters()), 3.0)
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(before[name] - p.detach(), 0.7 * p.grad, rtol=1e-3, atol=1e-5)
    assert any((before[n] - p).abs().max() > 0.01 for n, p in model.named_parameters())


def test_outputs_that_have_come_since_are_free():
    damped, old = remembered(0.5)
    grown = network(outputs=5)
    with torch.no_grad():
        for name, p in old.named_parameters():
            grown.get_parameter(name)[tuple(map(slice, p.shape))] = p
    moved(grown)
    new = {n: p[3:].detach().clone() for n, p in grown.named_parameters() if len(p) == 5}
    damped.loss(grown, torch.optim.Adam(grown.parameters())).backward()
    assert grown[3].weight.grad[:3].abs().min() > 0 and not grown[3].weight.grad[3:].any()
    damped.step(grown, torch.optim.SGD(grown.parameters(), 0.7))
    assert torch.equal(grown[3].weight[3:], new["3.weight"])
    assert torch.equal(grown[3].bias[3:], new["3.bias"])


def test_a_state_holds_the_damping_of_old_weights():
    damped, model = remembered(0.5)
    other = WeightPenalty(3.0, rank=2, damping=0.5)
    other.load_state_dict(copy.deepcopy(damped.state_dict()))
    moved(model)
    optimizer = torch.optim.Adam(model.parameters())
    assert torch.equal(other.loss(model, optimizer), damped.loss(model, optimizer))
    assert float(damped.loss(model, optimizer)) > 0


def test_the_predicted_movement_does_not_count_it():
    found = []
    for damping in (0.0, 5.0):
        penalty, model = remembered(damping)
        moved(model)
        penalty.remember(model, torch.randn(40, 5))
        found.append(penalty.moved)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -0.1}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": 0.1, "basis": "diagonal", "dwa_lambda": 1.0}, "Kronecker basis alone"),
    ],
)
def test_a_damping_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WeightPenalty(**options)
