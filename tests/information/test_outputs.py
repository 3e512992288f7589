"""Importance of the outputs, against loops over the rows of the Jacobian."""

import math

import pytest
import torch
from naive_bases import rotated
from naive_gradients import assert_close, gradients
from networks import Of
from torch import nn

from avalanche_cetl.information import (
    every_output_vector,
    fisher_information,
    kronecker_basis,
    projected_outputs,
    sample_output_vectors,
)


def jacobians(model, x):
    """Of every sample, by parameter ``(K, *shape)``."""
    model.eval()
    return [gradients(model, model(one).flatten()) for one in x.split(1)]


def centred(jacobian, likelihood):
    """``C J``."""
    if likelihood != "categorical":
        return jacobian
    return {name: rows - rows.mean(0) for name, rows in jacobian.items()}


def naive(model, x, likelihood):
    """``mean_x 1/K sum_k (C J)_k^2``."""
    found = [centred(one, likelihood) for one in jacobians(model, x)]
    return {
        name: torch.stack([one[name].square().mean(0) for one in found]).mean(0)
        for name in found[0]
    }


def repeated(model, x, likelihood):
    """The samples with every vector of theirs, as a measurement takes them."""
    vectors = every_output_vector(model.eval()(x), likelihood)
    return torch.cat([x] * len(vectors)), vectors.flatten(0, 1)


def exact(model, x, likelihood="categorical"):
    inputs, vectors = repeated(model, x, likelihood)
    return fisher_information(model, inputs, projected_outputs, targets=vectors)


def network(outputs=4, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs)).double()
    return model, torch.randn(7, 5, dtype=torch.float64)


def drawn(model, x, seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return fisher_information(model, x, "logits", generator=generator, **options)


# ------------------------------------------------------------------ exact


def test_importance_of_every_case_is_the_mean_square_of_the_centred_jacobian(case):
    model, x, _ = case.make(3)
    found, wanted = exact(model, x, case.likelihood), naive(model, x, case.likelihood)
    assert_close(found, wanted)


def test_importance_of_every_case_in_its_basis_is_that_of_the_rotated_jacobian(case):
    model, x, _ = case.make(3)
    inputs, vectors = repeated(model, x, case.likelihood)
    basis = kronecker_basis(model, inputs, projected_outputs, targets=vectors)
    found = fisher_information(model, inputs, projected_outputs, targets=vectors, basis=basis)
    rows = [
        {name: values[k] for name, values in one.items()}
        for one in (centred(j, case.likelihood) for j in jacobians(model, x))
        for k in range(len(next(iter(one.values()))))
    ]
    for name, layer in basis.items():
        wanted = torch.stack([rotated(layer, row).square() for row in rows]).mean(0)
        torch.testing.assert_close(found[name], wanted, rtol=1e-8, atol=1e-14, msg=name)


def test_the_basis_is_that_of_the_factors_of_the_same_gradients():
    model, x = network()
    inputs, vectors = repeated(model, x, "categorical")
    basis = kronecker_basis(model, inputs, projected_outputs, targets=vectors)
    rows = [centred(one, "categorical")["0.bias"] for one in jacobians(model, x)]
    left = torch.stack([row.T @ row / len(row) for row in rows]).mean(0)
    with_one = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    factors = {"left": left, "right": with_one.T @ with_one / len(x)}
    for side, factor in factors.items():
        vectors = getattr(basis["0.weight"], side)
        turned = vectors.T @ factor @ vectors
        torch.testing.assert_close(turned, turned.diagonal().diag(), rtol=0, atol=1e-12)
        torch.testing.assert_close(turned.trace(), factor.trace())


def softmax_fisher(model, x, tau):
    """The Fisher information of ``softmax(z / tau)``, exact: a mean over all its labels."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one in x.split(1):
        logs = (model(one)[0] / tau).log_softmax(0)
        for log in logs:
            found = torch.autograd.grad(log, list(model.parameters()), retain_graph=True)
            for name, gradient in zip(total, found, strict=True):
                total[name] += log.detach().exp() * gradient**2 / len(x)
    return total


def sigmoid_fisher(model, x, tau):
    """The same of independent answers ``sigmoid(z / tau)``: ``sum_k p_k (1 - p_k) J_k^2``."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one, rows in zip(x.split(1), jacobians(model, x), strict=True):
        p = (model(one)[0].detach() / tau).sigmoid()
        for name, row in rows.items():
            weights = (p * (1 - p)).reshape(-1, *[1] * (row.dim() - 1))
            total[name] += (weights * (row / tau) ** 2).sum(0) / len(x)
    return total


@pytest.mark.parametrize(
    ("likelihood", "fisher", "scale"),
    [("categorical", softmax_fisher, 1), ("bernoulli", sigmoid_fisher, 4 / 3)],  # 4 / K
)
def test_it_is_the_limit_of_the_fisher_information_of_a_network_that_is_sure_of_nothing(
    likelihood, fisher, scale
):
    model, x = network(3)
    wanted = exact(model, x, likelihood)
    away = []
    for tau in (1e2, 1e4, 1e6):
        found = {n: scale * tau**2 * v for n, v in fisher(model, x, tau).items()}
        away.append(max(float((found[n] / v - 1).abs().max()) for n, v in wanted.items()))
    assert away[0] < 0.1 and away[1] < away[0] / 50 and away[2] < 1e-5


def moved(model, x, direction, step):
    """Outputs after a step along a direction of the parameters."""
    params = {n: p.detach() + step * direction[n] for n, p in model.named_parameters()}
    return torch.func.functional_call(model, params, (x,)).detach()


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_the_quadratic_is_the_mean_squared_change_of_the_outputs(likelihood):
    model, x = network()
    step, zeros = 1e-5, {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    inputs, vectors = repeated(model, x, likelihood)
    basis = kronecker_basis(model, inputs, projected_outputs, targets=vectors)
    within = fisher_information(model, inputs, projected_outputs, targets=vectors, basis=basis)
    plain, layer = exact(model, x, likelihood), basis["2.weight"]
    matrix = torch.outer(layer.left[:, 1], layer.right[:, 2])
    one = torch.zeros_like(model[0].weight)
    one[2, 3] = 1
    directions = [
        (plain["0.weight"][2, 3], {"0.weight": one}),
        (within["2.weight"][1, 2], {"2.weight": matrix[:, :-1], "2.bias": matrix[:, -1]}),
    ]
    for importance, direction in directions:
        change = moved(model, x, zeros | direction, step) - moved(model, x, zeros, step)
        if likelihood == "categorical":
            change = change - change.mean(1, keepdim=True)
        found = change.square().mean() / step**2  # over samples and outputs
        assert importance > 1e-4
        torch.testing.assert_close(found, importance, rtol=1e-3, atol=0)


# ------------------------------------------------------------------ one vector a sample


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("basis", [False, True])
def test_one_vector_is_unbiased(likelihood, basis):
    model, x = network()
    inputs, vectors = repeated(model, x, likelihood)
    own = kronecker_basis(model, inputs, projected_outputs, targets=vectors) if basis else None
    wanted = fisher_information(model, inputs, projected_outputs, targets=vectors, basis=own)
    found = [drawn(model, x, seed, likelihood=likelihood, basis=own) for seed in range(200)]
    away = []
    for name, value in wanted.items():
        values = torch.stack([one[name] for one in found])
        error = values.std(0) / math.sqrt(len(values))
        live = error > 1e-12 * value.max()
        away.append(((values.mean(0) - value) / error)[live])
    away = torch.cat(away)
    assert len(away) > 50 and away.abs().max() < 4.5 and 0.7 < away.std() < 1.3


def test_the_loss_by_name_is_the_projection_on_drawn_vectors():
    model, x = network()
    vectors = sample_output_vectors(model(x), generator=torch.Generator().manual_seed(1))
    by_hand = fisher_information(model, x, projected_outputs, targets=vectors)
    assert_close(drawn(model, x), by_hand, rtol=0, atol=0)
    torch.testing.assert_close(vectors.sum(1), torch.zeros(7).double())
    # The length is that of C / K: r = 3 of K = 4.
    torch.testing.assert_close(vectors.square().sum(1), torch.full((7,), 0.75).double())


@pytest.mark.parametrize(
    ("outputs", "likelihood"), [(2, "categorical"), (1, "bernoulli"), (1, "gaussian")]
)
def test_one_vector_is_exact_for_two_classes_and_for_one_output(outputs, likelihood):
    model, x = network(outputs)
    assert_close(drawn(model, x, likelihood=likelihood), naive(model, x, likelihood))


def test_of_one_real_output_it_is_the_gradient_of_the_output_itself():
    model, x = network(1)
    found = fisher_information(model, x, lambda out: out.squeeze(1))
    assert_close(drawn(model, x, likelihood="gaussian"), found)


def test_it_costs_the_passes_of_the_sampled_fisher_information(monkeypatch):
    passes = {}
    grad, model = torch.autograd.grad, network(5)[0]
    x = torch.randn(64, 5, dtype=torch.float64)
    model.register_forward_hook(lambda *_: counted.append("forward"))
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: (counted.append("backward"), grad(*a, **k))[1]
    )
    for loss in ("sampled", "logits", "sampled", "logits"):
        counted = []
        fisher_information(model, x, loss)
        passes[loss] = sorted(counted)
    assert passes["logits"] == passes["sampled"] and passes["logits"]


@pytest.mark.parametrize("name", ["mlp", "residual", "class token", "experts", "transposed"])
def test_vectors_do_not_depend_on_the_size_of_a_chunk(named_case, name):
    case = named_case(name)
    model, x, _ = case.make(9)
    whole = drawn(model, x, likelihood=case.likelihood)
    assert_close(drawn(model, x, likelihood=case.likelihood, chunk_bytes=4000), whole)


# ------------------------------------------------------------------ what it is blind to, and not


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_a_shift_of_all_logits_does_not_count_for_classes(likelihood):
    model, x = network()
    shifted = Of(
        lambda m, x: m.model(x) + 50 * m.shift(x), model=model, shift=nn.Linear(5, 1).double()
    )
    found = drawn(shifted, x, likelihood=likelihood)
    shift = [float(found.pop(f"shift.{name}").max()) for name in ("weight", "bias")]
    own = {f"model.{n}": v for n, v in drawn(model, x, likelihood=likelihood).items()}
    assert_close(found, own)
    # Each yes or no has a sigmoid of its own, and a shift changes them all.
    assert max(shift) < 1e-24 if likelihood == "categorical" else min(shift) > 1


def test_it_grows_where_a_network_is_sure_and_the_sampled_fisher_information_vanishes():
    model, x = network(seed=2)
    before, sampled = drawn(model, x), fisher_information(model, x)
    with torch.no_grad():
        for p in model[2].parameters():
            p *= 1000
    assert model(x).softmax(1).max(1).values.min() > 0.999
    found = drawn(model, x)
    for name in ("0.weight", "0.bias"):  # the outputs are 1,000 times as large
        torch.testing.assert_close(found[name], 1e6 * before[name], rtol=1e-9, atol=0)
    sure = fisher_information(model, x, generator=torch.Generator().manual_seed(0))
    assert sure["0.weight"].max() < 1e-3 * sampled["0.weight"].max()


@pytest.mark.parametrize("make", [every_output_vector, lambda z: sample_output_vectors(z)[None]])
def test_logits_of_minus_infinity_are_no_outputs(make):
    model, x = network(4)
    short = nn.Sequential(model[0], model[1], nn.Linear(6, 2)).double()
    with torch.no_grad():
        short[2].weight.copy_(model[2].weight[[0, 2]])
        short[2].bias.copy_(model[2].bias[[0, 2]])

    mask = torch.tensor([False, True, False, True])
    masked = Of(lambda m, x: m.inner(x).masked_fill(mask, -math.inf), inner=model)
    vectors = make(masked(x).detach())
    found = fisher_information(
        masked, torch.cat([x] * len(vectors)), projected_outputs, targets=vectors.flatten(0, 1)
    )
    wanted = naive(short, x, "categorical")
    for name in ("0.weight", "0.bias"):
        torch.testing.assert_close(found[f"inner.{name}"], wanted[name])
    torch.testing.assert_close(found["inner.2.bias"][[0, 2]], wanted["2.bias"])
    assert not found["inner.2.weight"][[1, 3]].any()


def test_a_network_that_has_diverged_has_no_finite_importance():
    model, x = network()
    with torch.no_grad():
        model[2].bias[1] = math.nan
    assert drawn(model, x)["0.weight"].isnan().all()


def test_half_precision_is_summed_in_float32():
    z = torch.ones(2, 5000, dtype=torch.bfloat16)
    found = projected_outputs(z, z)
    assert found.dtype == torch.float32 and found.tolist() == [5000, 5000]


# ------------------------------------------------------------------ weights

WEIGHTS = {
    "equal": (None, [0.25] * 4),
    "other": ([1.0, 1.0, 0.03, 0.0], [1 / 2.03, 1 / 2.03, 0.03 / 2.03, 0.0]),
    "one": ([0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 1.0, 0.0]),
    "none": ([0.0] * 4, [0.25] * 4),
}


def matrix_of(shares, likelihood):
    p = torch.tensor(shares).double()
    return p.diag() - (torch.outer(p, p) if likelihood == "categorical" else 0)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_vector_together_is_the_covariance_of_the_shares(name, likelihood):
    weights, shares = WEIGHTS[name]
    weights = None if weights is None else torch.tensor(weights)
    vectors = every_output_vector(torch.randn(3, 4).double(), likelihood, weights)
    assert vectors.shape == (4, 3, 4)
    for n in range(3):
        found = vectors[:, n].T @ vectors[:, n] / 4
        torch.testing.assert_close(found, matrix_of(shares, likelihood), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_drawn_vectors_have_that_covariance_and_one_rank(name, likelihood):
    weights, shares = WEIGHTS[name]
    weights = None if weights is None else torch.tensor(weights)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_output_vectors(torch.zeros(20000, 4).double(), likelihood, generator, weights)
    wanted = matrix_of(shares, likelihood)
    found = drawn.T @ drawn / len(drawn)
    # u / s lies on a sphere, whose squared radius is the rank; two classes of it are exact.
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.005)
    counted = torch.tensor(shares) > 0
    lengths = (drawn[:, counted].square() / torch.tensor(shares)[counted]).sum(1)
    rank = int(counted.sum()) - (likelihood == "categorical")
    torch.testing.assert_close(lengths, torch.full_like(lengths, rank), rtol=1e-6, atol=1e-12)
    assert not drawn[:, ~counted].any()


def test_the_quadratic_of_weighted_outputs_is_the_variance_of_their_change():
    model, x = network()
    weights = torch.tensor([1.0, 1.0, 0.1, 0.0])
    p, step = (weights / weights.sum()).double(), 1e-5
    vectors = every_output_vector(model(x).detach(), weights=weights)
    inputs = torch.cat([x] * len(vectors))
    found = fisher_information(model, inputs, projected_outputs, targets=vectors.flatten(0, 1))
    one, zeros = torch.zeros_like(model[0].weight), {n: 0 * q for n, q in model.named_parameters()}
    one[2, 3] = 1
    change = moved(model, x, zeros | {"0.weight": one}, step) - moved(model, x, zeros, step)
    variance = (change.square() @ p - (change @ p).square()).mean() / step**2
    torch.testing.assert_close(found["0.weight"][2, 3], variance, rtol=1e-3, atol=0)


def test_outputs_of_minus_infinity_have_no_weight():
    z = torch.zeros(2, 3)
    z[0, 2] = -math.inf
    vectors = every_output_vector(z, weights=torch.tensor([3.0, 1.0, 4.0]))
    for n, shares in enumerate(([0.75, 0.25, 0.0], [0.375, 0.125, 0.5])):
        found = (vectors[:, n].T @ vectors[:, n] / 3).double()
        torch.testing.assert_close(found, matrix_of(shares, "categorical"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("weights", [[3.0, 1.0, 4.0], [0.5, 0.0, 0.25], [1.0, 0.0, 0.0]])
def test_weights_count_beside_one_another_alone(weights, scale):
    z, own = torch.randn(4, 3), torch.tensor(weights)
    shares = (own / own.sum()).tolist()
    vectors = every_output_vector(z, weights=scale * own)
    for n in range(len(z)):
        found = (vectors[:, n].T @ vectors[:, n] / 3).double()
        torch.testing.assert_close(found, matrix_of(shares, "categorical"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0]])
def test_other_weights_are_refused(weights):
    for make in (sample_output_vectors, every_output_vector):
        with pytest.raises(ValueError, match=r"the weights of 3 outputs are .*one number for each"):
            make(torch.zeros(2, 3), weights=torch.tensor(weights))


def test_wrong_arguments_are_named():
    model, x = network()
    with pytest.raises(ValueError, match=r"reads no targets=.*projected_outputs"):
        fisher_information(model, x, "logits", targets=torch.zeros(7, 4))
    with pytest.raises(ValueError, match=r"\(7, 3\).*\(7, 4\).*sample_output_vectors"):
        fisher_information(model, x, projected_outputs, targets=torch.zeros(7, 3))
    for make in (sample_output_vectors, every_output_vector):
        with pytest.raises(ValueError, match="'categorical'"):
            make(torch.zeros(2, 3), "poisson")
        with pytest.raises(ValueError, match="'bernoulli'"):
            make(torch.zeros(2, 1))
