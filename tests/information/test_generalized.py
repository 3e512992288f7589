import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_cetl import Quantile, dwa_penalty, generalized_fisher
from avalanche_cetl.information import normalize_importance, shared_weights
from avalanche_cetl.information.generalized import mean_importance
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis


def _pair():
    g = torch.Generator().manual_seed(0)
    shapes = {"a": (40, 50), "b": (3000,)}
    fisher = {k: torch.rand(s, generator=g, dtype=torch.float64) + 0.1 for k, s in shapes.items()}
    relative = {k: torch.rand(s, generator=g, dtype=torch.float64) for k, s in shapes.items()}
    return fisher, relative


def _naive_gate(fisher, relative, u, p, generator):
    result = {}
    for name in fisher:
        draw = torch.rand(fisher[name].shape, generator=generator).flatten()
        values = []
        for f, r, d in zip(fisher[name].flatten(), relative[name].flatten(), draw, strict=True):
            keep = d < p if r >= u else d >= p
            values.append(float(f) if keep else 0.0)
        result[name] = torch.tensor(values, dtype=torch.float64).view_as(fisher[name])
    return result


@pytest.mark.parametrize(("u", "p"), [(0.5, 0.9), (0.2, 0.7), (0.0, 1.0), (1.0, 0.0)])
def test_gate_equals_eq_10_weight_by_weight(u, p):
    fisher, relative = _pair()
    found = generalized_fisher(
        fisher, relative, threshold=u, probability=p, generator=torch.Generator().manual_seed(5)
    )
    wanted = _naive_gate(fisher, relative, u, p, torch.Generator().manual_seed(5))
    for name in fisher:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)


def test_gate_keeps_the_stated_shares():
    fisher, relative = _pair()
    found = generalized_fisher(fisher, relative, generator=torch.Generator().manual_seed(1))
    shared = relative["b"] >= 0.5
    kept = found["b"] > 0
    assert abs(kept[shared].double().mean() - 0.9) < 0.03
    assert abs(kept[~shared].double().mean() - 0.1) < 0.03


def test_same_generator_same_gate():
    fisher, relative = _pair()
    one, two, three = (
        generalized_fisher(fisher, relative, generator=torch.Generator().manual_seed(s))["a"]
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.8])
def test_quantile_shares_the_most_related_fraction(q):
    _, relative = _pair()
    shared = shared_weights(relative, Quantile(q))
    share = torch.cat([mask.flatten() for mask in shared.values()]).double().mean()
    assert abs(share - (1 - q)) < 0.01


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"threshold": 1.5}, ValueError),
        ({"probability": -0.1}, ValueError),
        ({"threshold": "high"}, TypeError),
        ({"probability": None}, TypeError),
        ({"relative": {"a": torch.zeros(2)}}, ValueError),
        ({"relative": {"a": torch.zeros(40, 50), "b": torch.zeros(2)}}, ValueError),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error):
    fisher, relative = _pair()
    call = {"relative": relative, **arguments}
    with pytest.raises(error):
        generalized_fisher(fisher, call.pop("relative"), **call)


def test_quantile_outside_the_unit_interval():
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        Quantile(1.2)


@given(st.floats(1e-3, 1e3))
def test_normalised_importance_has_mean_one_over_what_is_kept(scale):
    values = {"a": torch.tensor([0.0, 1.0, 3.0]).double() * scale, "b": torch.zeros(2).double()}
    found = normalize_importance(values)
    torch.testing.assert_close(found["a"], torch.tensor([0.0, 0.5, 1.5]).double())
    assert not found["b"].any()


def test_the_mean_in_a_basis_is_that_over_all_weights_whatever_directions_are_kept():
    g = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    gradients = torch.randn(50, 4, 6, generator=g, dtype=torch.float64)
    rotated = (u.mT @ gradients @ v).square().mean(0)
    whole = KroneckerBasis({"w": LayerBasis("w", None, u, v)})
    mean = float(gradients.square().mean())
    assert mean_importance({"w": rotated}, whole) == pytest.approx(mean, rel=1e-12)
    few = KroneckerBasis({"w": LayerBasis("w", None, u[:, :2], v[:, :3])})
    held = rotated[:2, :3]
    assert mean_importance({"w": held}, few) == pytest.approx(float(held.sum()) / 24, rel=1e-12)
    gated = held * torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    found = mean_importance({"w": gated}, few)
    assert found == pytest.approx(float(gated.sum()) / 12, rel=1e-12)
    assert mean_importance(normalize_importance({"w": gated}, few), few) == pytest.approx(1)


def test_normalising_nothing_gives_nothing():
    assert not normalize_importance({"a": torch.zeros(3)})["a"].any()


def test_penalty_equals_eq_11_and_its_gradient():
    g = torch.Generator().manual_seed(0)
    importance, _ = _pair()
    anchors = {k: torch.randn(v.shape, generator=g).double() for k, v in importance.items()}
    params = {
        k: torch.randn(v.shape, generator=g).double().requires_grad_()
        for k, v in importance.items()
    }
    params["free"] = torch.ones(3, requires_grad=True)
    penalty = dwa_penalty(params, anchors, importance, lam=0.3)
    naive = 0.0
    for name in importance:
        for i, t, a in zip(
            importance[name].flatten(), params[name].flatten(), anchors[name].flatten(), strict=True
        ):
            naive += 0.3 / 2 * float(i) * float(t - a) ** 2
    assert abs(float(penalty) - naive) < 1e-9 * naive
    penalty.backward()
    torch.testing.assert_close(
        params["a"].grad, 0.3 * importance["a"] * (params["a"].detach() - anchors["a"])
    )
    assert params["free"].grad is None


def test_penalty_without_importance_is_zero():
    assert float(dwa_penalty({}, {}, {}, 1.0)) == 0


@pytest.mark.parametrize("anchors", [{}, {"a": torch.zeros(3)}])
def test_penalty_names_what_does_not_fit(anchors):
    with pytest.raises(ValueError, match="'a'"):
        dwa_penalty({"a": torch.zeros(2)}, anchors, {"a": torch.zeros(2)}, 1.0)


@pytest.mark.parametrize("block", [4, 2**16])
def test_penalty_has_exact_first_and_second_derivatives(block, monkeypatch):
    monkeypatch.setattr("avalanche_cetl.information.generalized._BLOCK", block)
    torch.manual_seed(0)
    params = [torch.randn(3, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    anchors = {str(i): torch.randn_like(p) for i, p in enumerate(params)}
    weights = {str(i): torch.rand_like(p) for i, p in enumerate(params)}

    def penalty(*values):
        named = {str(i): v for i, v in enumerate(values)}
        return dwa_penalty(named, anchors, weights, 0.7) * 3

    inputs = [p.requires_grad_() for p in params]
    assert torch.autograd.gradcheck(penalty, inputs, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(penalty, inputs, nondet_tol=1e-12)


def test_penalty_can_be_differentiated_again_and_takes_any_memory_format():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    anchor, importance = torch.randn(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    value = dwa_penalty({"w": weight}, {"w": anchor}, {"w": importance}, 0.5)
    torch.testing.assert_close(value, 0.25 * (importance * (weight - anchor) ** 2).sum())
    for _ in range(2):
        (found,) = torch.autograd.grad(value, weight, retain_graph=True)
        torch.testing.assert_close(found, 0.5 * importance * (weight - anchor))


def test_penalty_of_half_precision_weights_is_summed_in_single_precision():
    weight = torch.ones(300_000, dtype=torch.float16)
    one = {"w": torch.ones(300_000, dtype=torch.float16)}
    value = dwa_penalty({"w": 2 * weight}, one, one, 1.0)
    assert value.dtype == torch.float32 and float(value) == 150_000
