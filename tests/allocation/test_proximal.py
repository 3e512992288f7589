import math

import pytest
import torch
from naive_bases import drawn_layer, drawn_values, drawn_weights, quadratic
from torch import nn

from avalanche_cetl.allocation.proximal import QuadraticPenalty, step_sizes
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis


def held(experiences=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    pull, kept = QuadraticPenalty(), []
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
    pull = QuadraticPenalty()
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
    pull = QuadraticPenalty()
    ones = {n: torch.ones(2, dtype=torch.float64) for n in "abcd"}
    pull.add(ones, {n: 0 * v for n, v in ones.items()})
    groups = [
        {"params": [params["a"]], "lr": 1.0},
        {"params": [params["b"], params["d"]], "lr": torch.tensor(3.0)},
    ]
    pull.step(params, torch.optim.Adam(groups, foreach=False), 1.0)
    found = {name: float(p[0]) for name, p in params.items()}
    assert found == pytest.approx({"a": 1 / 2, "b": 1 / 4, "c": 1.0, "d": 1.0})


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_a_network_whose_type_changes_between_experiences_is_held_in_the_wider_one(first):
    second = torch.float64 if first == torch.float32 else torch.float32
    pull, one, two = QuadraticPenalty(), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])
    pull.add({"w": one.to(first)}, {"w": one.to(first)})
    pull.add({"w": two.to(second)}, {"w": two.to(second)})
    assert pull.importance["w"].dtype == pull.anchors["w"].dtype == torch.float64
    assert pull.anchors["w"].tolist() == pytest.approx([2.5, 1.0])
    parameter = nn.Parameter(torch.zeros(2, dtype=second))
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=1.0), 1.0)
    assert parameter.tolist() == pytest.approx([2.0, 0.5])
    assert float(pull.penalty({"w": parameter}, 2.0)) == pytest.approx(1 + 3 + 0.25)


def test_half_precision_weights_are_pulled():
    pull = QuadraticPenalty()
    pull.add({"w": torch.ones(2)}, {"w": torch.zeros(2, dtype=torch.bfloat16)})
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=1.0), 1.0)
    assert parameter.tolist() == [0.5, 0.5]


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_of_half_precision_go_towards_anchors_between_their_values(dtype):
    pull = QuadraticPenalty()
    fine = 1 + torch.finfo(dtype).eps * torch.tensor([0.25, 0.5, 0.75])
    for anchor in (fine, fine + 2):  # their mean is no number of half precision
        pull.add({"w": torch.ones(3)}, {"w": anchor})
    parameter = nn.Parameter(torch.zeros(3, dtype=dtype))
    pull.step({"w": parameter}, torch.optim.SGD([parameter], lr=0.25), 2.0)
    assert torch.equal(parameter, ((fine + 1) / 2).to(dtype)) and parameter.dtype == dtype
    value = pull.penalty({"w": parameter}, 2.0)
    now = parameter.detach().float()
    wanted = ((now - fine).square() + (now - fine - 2).square()).sum()
    torch.testing.assert_close(value.detach(), wanted, rtol=1e-5, atol=0)
    value.backward()
    torch.testing.assert_close(parameter.grad, (4 * (now - fine - 1)).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_in_a_basis_half_precision_pays_what_single_precision_pays(dtype):
    pull, anchors, _ = held_in_a_basis("full")
    layer = pull.basis["w"].to(torch.float32)
    importance = {name: value.float() for name, value in pull.importance.items()}
    near = {name: (value + 0.01).to(dtype) for name, value in anchors.items()}
    pull = QuadraticPenalty.within(
        KroneckerBasis({"w": layer}), importance, {n: a.float() for n, a in anchors.items()}
    )
    wanted = pull.penalty({name: value.float() for name, value in near.items()}, 3.0)
    torch.testing.assert_close(pull.penalty(near, 3.0), wanted, rtol=1e-6, atol=0)
    half, single = (
        parameters({n: v.to(kind) for n, v in near.items()}) for kind in (dtype, torch.float32)
    )
    for params in (half, single):
        pull.step(params, torch.optim.SGD(params.values(), lr=0.3), 3.0)
    for name, parameter in half.items():
        assert torch.equal(parameter, single[name].to(dtype))


# ------------------------------------------------------------------ momentum

MOMENTA = {
    "none": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "nothing to sum": {"momentum": 0.0, "dampening": 0.5},
}


def at_rest(optimizer, weight, gradient, steps):
    """Where a weight of the task's gradient comes to rest beside a penalty of twice its square."""
    pull = QuadraticPenalty()
    pull.add({"w": torch.ones_like(weight)}, {"w": torch.zeros_like(weight)})
    for _ in range(steps):
        weight.grad = gradient(weight.detach())
        optimizer.step()
        pull.step({"w": weight}, optimizer, 2.0)
    return weight.item()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("options", MOMENTA.values(), ids=MOMENTA)
def test_weights_come_to_rest_where_the_penalty_in_the_loss_takes_them(options, maximize):
    weight, sign = nn.Parameter(torch.zeros(1, dtype=torch.float64)), -1 if maximize else 1
    optimizer = torch.optim.SGD([weight], lr=0.02, maximize=maximize, **options)
    # 1/2 (w - 1)^2 + 2/2 w^2 is least at 1/3
    found = at_rest(optimizer, weight, lambda w: sign * (w - 1), 1500)
    assert found == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("options", MOMENTA.values(), ids=MOMENTA)
def test_a_step_size_is_how_far_an_impulse_goes_in_the_end(options):
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.3, **options)
    for impulse in (0.0, 1.0, *[0.0] * 400):  # dampening spares the very first gradient
        weight.grad = torch.full_like(weight, impulse)
        optimizer.step()
    assert step_sizes(optimizer)[id(weight)] == pytest.approx(-weight.item(), rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rmsprops_momentum_counts_in_steps_of_its_scaled_gradient(momentum):
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.RMSprop([weight], lr=0.01, momentum=momentum, eps=1e-12)
    # the gradient is 3 always, 1 when it is divided by its size
    found = at_rest(optimizer, weight, lambda w: torch.full_like(w, -3.0), 2000)
    assert found == pytest.approx(1 / 2, abs=1e-6)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "Adagrad", "Muon"])
def test_running_means_of_gradients_leave_the_learning_rate_as_it_is(kind):
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = getattr(torch.optim, kind)([weight], lr=0.25)
    assert step_sizes(optimizer) == {id(weight): 0.25}


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("options", MOMENTA.values(), ids=MOMENTA)
def test_with_momentum_every_strength_is_stable(options, strength):
    curvature = torch.tensor([0.5, 1.0, 20.0], dtype=torch.float64)
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.05, **options)
    pull = QuadraticPenalty()
    pull.add({"w": torch.ones(3, dtype=torch.float64)}, {"w": torch.full((3,), -1.0).double()})
    for _ in range(1000):
        weight.grad = (curvature * (weight - 2)).detach()
        optimizer.step()
        pull.step({"w": weight}, optimizer, strength)
    wanted = (2 * curvature - strength) / (curvature + strength)
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.0])
def test_momentum_that_sums_without_end_holds_all_that_moves(rate):
    weight = nn.Parameter(torch.ones(2))
    pull = QuadraticPenalty()
    pull.add({"w": torch.tensor([1.0, 0.0])}, {"w": torch.zeros(2)})
    pull.step({"w": weight}, torch.optim.SGD([weight], lr=rate, momentum=1.0), 1.0)
    assert weight.tolist() == ([0.0, 1.0] if rate else [1.0, 1.0])


# ------------------------------------------------------------------ in a basis

#: By name: shape of the weight, rank, and what the basis is made with.
LAYERS = {
    "full": ((4, 5), 99, {}),
    "truncated": ((4, 5), 2, {}),
    "more outputs": ((7, 2), 3, {}),
    "no bias": ((4, 5), 3, {"bias": None}),
    "convolution": ((4, 2, 3, 2), 3, {}),
    "groups": ((6, 3, 2), 2, {"groups": 3}),
}


def held_in_a_basis(name, seed=0):
    """A pull of one layer and a norm, its anchors, and weights that are away from them."""
    shape, rank, options = LAYERS[name]
    layer = drawn_layer(seed, shape, rank, **options)
    shapes = {"w": shape, "norm": (3,)} | ({} if layer.bias is None else {"b": shape[:1]})
    importance = {"w": drawn_values(1, layer.shape), "norm": drawn_values(2, (3,))}
    anchors, before = drawn_weights(3, shapes), drawn_weights(4, shapes)
    pull = QuadraticPenalty.within(KroneckerBasis({"w": layer}), importance, anchors)
    return pull, anchors, before


def parameters(values):
    return {name: nn.Parameter(value.clone()) for name, value in values.items()}


def sgd(params, **rates):
    """An optimiser whose parameters have rates of their own; those without one it does not hold."""
    groups = [{"params": [params[name]], "lr": rate} for name, rate in rates.items()]
    return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("name", LAYERS)
def test_in_a_basis_the_step_solves_the_implicit_equation(name, strength):
    pull, anchors, before = held_in_a_basis(name)
    params = parameters(before)
    pull.step(params, torch.optim.SGD(params.values(), lr=0.3), strength)
    away = {n: (p.detach() - anchors[n]).requires_grad_() for n, p in params.items()}
    value = quadratic(pull.importance, pull.basis, away) / 2
    for n, gradient in zip(away, torch.autograd.grad(value, away.values()), strict=True):
        left = params[n].detach() - before[n] + 0.3 * strength * gradient
        torch.testing.assert_close(left, 0 * left, rtol=0, atol=1e-9 * (1 + strength))
    assert any(not torch.equal(params[n].detach(), before[n]) for n in params)


@pytest.mark.parametrize("name", LAYERS)
def test_in_a_basis_the_value_is_the_sum_over_directions(name):
    pull, anchors, before = held_in_a_basis(name)
    away = {n: value - anchors[n] for n, value in before.items()}
    wanted = 0.35 * quadratic(pull.importance, pull.basis, away)
    torch.testing.assert_close(pull.penalty(before, 0.7), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_weight_and_bias_each_move_as_if_the_other_had_its_rate(frozen):
    pull, _, before = held_in_a_basis("truncated")
    params = parameters(before)
    params["b"].requires_grad_(not frozen)
    pull.step(params, sgd(params, w=0.2, b=0.7), 1.5)
    for name, rate in (("w", 0.2), ("b", 0.7)):
        same = parameters(before)
        pull.step(same, torch.optim.SGD(same.values(), lr=rate), 1.5)
        moves = not (frozen and name == "b")
        wanted = same[name] if moves else before[name]
        torch.testing.assert_close(params[name], wanted, rtol=0, atol=0, check_dtype=True)
        assert not torch.equal(same[name], before[name])
    assert torch.equal(params["norm"], before["norm"])  # the optimiser does not hold it


@pytest.mark.parametrize("rates", [{"w": 0.2, "b": 0.7}, {"b": 0.7}], ids=["frozen", "not held"])
def test_a_bias_alone_moves_where_its_weight_is_frozen_or_not_held_by_the_optimiser(rates):
    pull, _, before = held_in_a_basis("full")
    params = parameters(before)
    params["w"].requires_grad_("w" not in rates)
    pull.step(params, sgd(params, **rates), 1.5)
    assert torch.equal(params["w"], before["w"]) and not torch.equal(params["b"], before["b"])


def test_a_layer_of_which_a_part_is_missing_is_not_held():
    pull, anchors, before = held_in_a_basis("full")
    del before["b"]
    params = parameters(before)
    pull.step(params, torch.optim.SGD(params.values(), lr=0.3), 1.0)
    assert torch.equal(params["w"], before["w"]) and not torch.equal(params["norm"], before["norm"])
    away = {"norm": before["norm"] - anchors["norm"]}
    wanted = quadratic({"norm": pull.importance["norm"]}, {}, away) / 2
    torch.testing.assert_close(pull.penalty(before, 1.0), wanted, rtol=1e-12, atol=0)
    assert float(pull.penalty({}, 1.0)) == 0


@pytest.mark.parametrize("name", LAYERS)
def test_infinite_strength_takes_directions_to_the_anchor_and_leaves_the_others(name):
    pull, anchors, before = held_in_a_basis(name)
    params = parameters(before)
    pull.step(params, torch.optim.SGD(params.values(), lr=0.3), math.inf)
    layer = pull.basis["w"]
    now = layer.rotate({n: p.detach() - anchors[n] for n, p in params.items()})
    then = layer.rotate({n: value - anchors[n] for n, value in before.items()})
    wanted = torch.where(pull.importance["w"] > 0, 0, then)
    torch.testing.assert_close(now, wanted, rtol=0, atol=1e-12)
    # What is outside of the directions stays.
    moved = {n: params[n].detach() - before[n] for n in layer.parameters}
    shapes = {n: value.shape for n, value in moved.items()}
    within = layer.restore(layer.rotate(moved), shapes)
    for n, value in moved.items():
        torch.testing.assert_close(within[n], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strength", [1e30, 1e300, math.inf])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
def test_in_a_basis_no_strength_overflows_in_float32(strength, scale):
    pull, anchors, before = held_in_a_basis("truncated")
    pull = QuadraticPenalty.within(
        pull.basis.to(torch.float32),
        {n: value.float() * scale for n, value in pull.importance.items()},
        {n: value.float() for n, value in anchors.items()},
    )
    params = parameters({n: value.float() for n, value in before.items()})
    pull.step(params, torch.optim.SGD(params.values(), lr=0.1), strength)
    assert all(p.isfinite().all() for p in params.values())


def test_in_a_basis_half_precision_weights_are_pulled():
    pull, anchors, before = held_in_a_basis("truncated")
    single = {n: value.float() for n, value in pull.importance.items()}
    halves = {n: value.to(torch.bfloat16) for n, value in anchors.items()}
    params = parameters({n: value.to(torch.bfloat16) for n, value in before.items()})
    half = QuadraticPenalty.within(pull.basis.to(torch.float32), single, halves)
    half.step(params, torch.optim.SGD(params.values(), lr=0.3), 20.0)
    wide = parameters(before)
    pull.step(wide, torch.optim.SGD(wide.values(), lr=0.3), 20.0)
    for name, p in params.items():
        assert p.dtype == torch.bfloat16
        torch.testing.assert_close(p.double(), wide[name], rtol=0, atol=0.02)
        assert (wide[name] - before[name]).abs().max() > 0.1
