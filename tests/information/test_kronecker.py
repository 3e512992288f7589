"""Fisher information in Kronecker bases, against the naive loop ``U^T G_n V``."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl.information import (
    dwa_penalty,
    fisher_and_relative,
    fisher_information,
    generalized_fisher,
    kronecker,
    kronecker_basis,
)
from avalanche_cetl.information.estimators import gaussian, histogram, rank


class Mean(nn.Module):
    """The mean over all positions, whose dimensions stand after the channels."""

    def forward(self, x):
        return x.flatten(2).mean(2)


class Sequence(nn.Module):
    """A linear layer that reads every token."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.token(x)).mean(1))


class Shared(nn.Module):
    """A layer that runs twice, and one that runs once."""

    def __init__(self):
        super().__init__()
        self.twice, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


def convolutional(layer, channels=4):
    return nn.Sequential(layer, nn.Tanh(), Mean(), nn.Linear(channels, 3))


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)), (5,)),
    "sequence": (Sequence, (6, 3)),
    "conv1d": (lambda: convolutional(nn.Conv1d(2, 4, 3, stride=2, padding=1)), (2, 9)),
    "conv2d": (lambda: convolutional(nn.Conv2d(2, 4, 3, padding=2, dilation=2)), (2, 6, 6)),
    "strided": (lambda: convolutional(nn.Conv2d(2, 4, (3, 2), stride=(1, 2))), (2, 6, 6)),
    "one pixel": (lambda: convolutional(nn.Conv2d(2, 4, 5)), (2, 5, 5)),
    "many channels": (lambda: convolutional(nn.Conv2d(8, 4, 3, padding=1)), (8, 4, 4)),
    "reflecting": (
        lambda: convolutional(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")), (2, 5, 5)
    ),
    "groups": (lambda: convolutional(nn.Conv2d(4, 4, 3, groups=2, padding=1)), (4, 5, 5)),
    "depthwise": (lambda: convolutional(nn.Conv2d(4, 4, 3, groups=4)), (4, 5, 5)),
    "conv3d": (lambda: convolutional(nn.Conv3d(2, 4, 2)), (2, 3, 4, 3)),
    "transposed": (lambda: convolutional(nn.ConvTranspose2d(2, 4, 3, stride=2)), (2, 3, 3)),
    "transposed groups": (
        lambda: convolutional(nn.ConvTranspose2d(4, 4, 3, groups=2, padding=1)), (4, 4, 4)
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), Mean(), nn.LayerNorm(4), nn.Linear(4, 3)
        ), (2, 5, 5),
    ),
}  # fmt: skip


def made(name, count=12):
    build, shape = CASES[name]
    torch.manual_seed(0)
    model = build().double()
    x = torch.randn(count, *shape, dtype=torch.float64)
    return model, x, torch.arange(count) % 3


def loop(model, x, losses):
    """The gradients of every sample and loss by parameter, one backward pass after another."""
    params = dict(model.named_parameters())
    found = [{name: [] for name in params} for _ in losses]
    for k, loss in enumerate(losses):
        for i in range(len(x)):
            value = loss(model(x[i : i + 1]), slice(i, i + 1)).sum()
            for name, g in zip(params, torch.autograd.grad(value, params.values()), strict=True):
                found[k][name].append(g)
    return [{name: torch.stack(g) for name, g in task.items()} for task in found]


def rotated(gradients, layer):
    """``U^T G_n V`` of every sample, group by group."""
    g = gradients[layer.weight]
    groups = layer.left.shape[0] if layer.left.dim() == 3 else 1
    left = layer.left.reshape(groups, *layer.left.shape[-2:])
    right = layer.right.reshape(groups, *layer.right.shape[-2:])
    rows = g.shape[1] // groups
    found = []
    for n in range(len(g)):
        parts = []
        for k in range(groups):
            matrix = g[n, k * rows : (k + 1) * rows].flatten(1)
            if layer.bias is not None:
                bias = gradients[layer.bias][n, k * rows : (k + 1) * rows]
                matrix = torch.cat([matrix, bias.unsqueeze(1)], 1)
            parts.append(left[k].T @ matrix @ right[k])
        found.append(torch.stack(parts).reshape(layer.shape))
    return torch.stack(found)


def nll(y):
    return lambda out, rows: F.cross_entropy(out, y[rows], reduction="none")


def two_losses(y):
    """Two losses per sample, and the same as the library takes them."""
    ours = (
        lambda out, y: F.cross_entropy(out, y, reduction="none"),
        lambda out, y: out.square().sum(1) * (1 + y),
    )
    return [lambda out, rows, one=one: one(out, y[rows]) for one in ours], ours


def wanted(gradients, basis):
    """Per-sample values by the names that a basis measures."""
    values = {name: rotated(gradients, layer) for name, layer in basis.items()}
    others = {n: g for n, g in gradients.items() if n not in basis and n not in basis.folded}
    return values | others


@pytest.mark.parametrize("rank_", [64, 2])
@pytest.mark.parametrize("name", CASES)
def test_fisher_in_a_basis_is_the_mean_square_of_rotated_gradients(name, rank_):
    model, x, y = made(name)
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=rank_)
    found = fisher_information(model, x, "empirical", targets=y, basis=basis)
    (gradients,) = loop(model, x, [nll(y)])
    values = wanted(gradients, basis)
    assert found.keys() == values.keys()
    for one, value in values.items():
        torch.testing.assert_close(found[one], value.square().mean(0), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_a_full_basis_keeps_the_sum_of_the_fisher_information(name):
    model, x, y = made(name)
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=1000)
    within = fisher_information(model, x, "empirical", targets=y, basis=basis)
    plain = fisher_information(model, x, "empirical", targets=y)
    for weight, layer in basis.items():
        total = sum(plain[one].sum() for one in layer.parameters)
        torch.testing.assert_close(within[weight].sum(), total, rtol=1e-10, atol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["linear", "groups", "norms"])
def test_few_samples_are_measured_in_the_basis_of_many(name, count):
    model, x, y = made(name)
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=3)
    x, y = x[:count], y[:count]
    found = fisher_information(model, x, "empirical", targets=y, basis=basis)
    (gradients,) = loop(model, x, [nll(y)])
    for one, value in wanted(gradients, basis).items():
        torch.testing.assert_close(found[one], value.square().mean(0), rtol=1e-10, atol=1e-15)


def test_fisher_in_a_basis_does_not_depend_on_the_room_for_activations():
    model, x, y = made("conv2d", 24)
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=3)
    small = kronecker_basis(model, x, "empirical", targets=y, rank=3, chunk_bytes=20_000)
    for name, layer in basis.items():
        products = (
            (layer.right.T @ small[name].right).abs(),
            (layer.left.T @ small[name].left).abs(),
        )
        for product in products:  # the same directions, up to their sign
            torch.testing.assert_close(
                product, torch.eye(len(product)).to(product), atol=1e-8, rtol=0
            )
    whole = fisher_information(model, x, "empirical", targets=y, basis=basis)
    pieces = fisher_information(model, x, "empirical", targets=y, basis=basis, chunk_bytes=20_000)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("estimator", "naive"), [("rank", rank), ("histogram", histogram)])
@pytest.mark.parametrize("name", ["linear", "conv2d", "groups", "transposed"])
def test_relative_fisher_in_a_basis_is_the_estimate_from_rotated_gradients(name, estimator, naive):
    model, x, y = made(name, 30)
    own, ours = two_losses(y)
    basis = kronecker_basis(model, x, ours[0], targets=y, rank=3)
    fisher, relative = fisher_and_relative(
        model, x, ours, targets=(y, y), estimator=estimator, basis=basis
    )
    first, second = (wanted(g, basis) for g in loop(model, x, own))
    for one in relative:
        a, b = first[one].square().flatten(1), second[one].square().flatten(1)
        torch.testing.assert_close(relative[one].flatten(), naive(a, b), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(fisher[one].flatten(), a.mean(0), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["conv2d", "groups", "transposed"])
def test_gaussian_relative_fisher_in_a_basis_is_that_of_rotated_gradients(name):
    model, x, y = made(name, 30)
    own, ours = two_losses(y)
    basis = kronecker_basis(model, x, ours[0], targets=y, rank=3)
    _, relative = fisher_and_relative(model, x, ours, targets=(y, y), basis=basis)
    first, second = (wanted(g, basis) for g in loop(model, x, own))
    a, b = first["0.weight"].square().flatten(1), second["0.weight"].square().flatten(1)
    torch.testing.assert_close(relative["0.weight"].flatten(), gaussian(a, b), rtol=1e-8, atol=1e-8)


def factors_of(model, layer, x, y, unfold):
    """Kronecker factors by hooks: of inputs with a one beside them, and of output gradients."""
    kept = {}
    hooks = [
        layer.register_forward_hook(lambda _m, i, o: kept.update(a=i[0].detach(), o=o)),
    ]
    out = model(x)
    hooks[0].remove()
    losses = F.cross_entropy(out, y, reduction="none")
    g = torch.stack(
        [
            torch.autograd.grad(one, kept["o"], retain_graph=True)[0][n]
            for n, one in enumerate(losses)
        ]
    )
    a, g = unfold(kept["a"]), g.flatten(2).mT if g.dim() > 2 else g.unsqueeze(1)
    a = torch.cat([a, torch.ones_like(a[..., :1])], -1)
    return (torch.einsum("nti,ntj->ij", t, t) / len(x) for t in (a, g))


@pytest.mark.parametrize(
    ("name", "unfold"),
    [
        ("linear", lambda a: a.unsqueeze(1)),
        ("conv2d", lambda a: F.unfold(a, 3, padding=2, dilation=2).mT),
        ("many channels", lambda a: F.unfold(a, 3, padding=1).mT),
    ],
)
def test_the_basis_has_the_leading_eigenvectors_of_both_factors(name, unfold):
    model, x, y = made(name)
    layer = kronecker_basis(model, x, "empirical", targets=y, rank=3)["0.weight"]
    inputs, outputs = factors_of(model, model[0], x, y, unfold)
    for factor, vectors in ((inputs, layer.right), (outputs, layer.left)):
        values = torch.linalg.eigvalsh(factor).flip(0)[: vectors.shape[1]]
        torch.testing.assert_close(vectors.T @ factor @ vectors, values.diag(), rtol=0, atol=1e-12)


def test_large_factors_give_the_same_directions_without_being_made(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(40, 5).double() @ torch.randn(5, 60).double()
    x = x + 1e-3 * torch.randn(40, 60).double()
    y = torch.arange(40) % 3
    dense = kronecker_basis(model, x, "empirical", targets=y, rank=4)["0.weight"].right
    monkeypatch.setattr(kronecker, "_DENSE", 30)
    for chunk_bytes in (2**29, 20_000):
        drawn = kronecker_basis(model, x, "empirical", targets=y, rank=4, chunk_bytes=chunk_bytes)[
            "0.weight"
        ].right
        overlap = (dense.T @ drawn).abs()
        torch.testing.assert_close(overlap, torch.eye(4).double(), rtol=0, atol=1e-6)


def test_directions_hold_the_share_of_the_trace_that_is_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3)).double()
    x = torch.randn(50, 6).double() * torch.tensor([10.0, 5.0, 1.0, 0.1, 0.1, 0.1])
    y = torch.arange(50) % 3
    values = torch.linalg.eigvalsh(x.T @ x / 50).flip(0)
    held = values.cumsum(0) / values.sum()
    for share in (0.5, 0.9, 0.99, 1.0):
        layer = kronecker_basis(model, x, "empirical", targets=y, share=share)["0.weight"]
        kept = layer.right.shape[1]
        assert held[kept - 1] >= share * (1 - 1e-9)
        assert kept == 1 or held[kept - 2] < share


def test_rounding_in_single_precision_keeps_no_direction_without_information():
    torch.manual_seed(0)
    model, x = nn.Linear(30, 12), torch.randn(4, 30)
    y = torch.arange(4) % 12
    for scale in (1.0, 1 + 1e-6, 0.3):  # four samples have four directions on either side
        layer = kronecker_basis(model, scale * x, "empirical", targets=y)["weight"]
        assert layer.shape == (4, 4)


def test_shared_layers_stay_diagonal():
    torch.manual_seed(0)
    model, x, y = Shared().double(), torch.randn(9, 5).double(), torch.arange(9) % 3
    basis = kronecker_basis(model, x, "empirical", targets=y)
    assert set(basis) == {"head.weight"} and basis.folded == {"head.bias"}
    found = fisher_information(model, x, "empirical", targets=y, basis=basis)
    plain = fisher_information(model, x, "empirical", targets=y)
    assert found.keys() == {"twice.weight", "twice.bias", "head.weight"}
    torch.testing.assert_close(found["twice.weight"], plain["twice.weight"], rtol=1e-10, atol=0)


class BiasTwice(nn.Module):
    """A layer whose bias the forward pass reads once more by itself."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)) * self.layer.bias)


@pytest.mark.parametrize("count", [2, 9])
def test_a_bias_that_is_read_elsewhere_too_stays_out_of_the_basis(count):
    torch.manual_seed(0)
    model, x, y = BiasTwice().double(), torch.randn(9, 5).double(), torch.arange(9) % 3
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=3)
    assert "layer.bias" not in basis.folded and "head.bias" in basis.folded
    x, y = x[:count], y[:count]
    found = fisher_information(model, x, "empirical", targets=y, basis=basis)
    (gradients,) = loop(model, x, [nll(y)])
    values = wanted(gradients, basis)
    assert found.keys() == values.keys()
    for one, value in values.items():
        torch.testing.assert_close(found[one], value.square().mean(0), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["linear", "groups", "transposed", "norms"])
def test_the_penalty_in_a_basis_is_eq_11_over_directions(name):
    model, x, y = made(name)
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=3)
    fisher = fisher_information(model, x, "empirical", targets=y, basis=basis)
    anchors = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
    params = dict(model.named_parameters())
    penalty = dwa_penalty(params, anchors, fisher, 0.7, basis)
    moved = {n: (p - anchors[n]).unsqueeze(0) for n, p in params.items()}
    total = sum((fisher[n] * value[0].square()).sum() for n, value in wanted(moved, basis).items())
    torch.testing.assert_close(penalty, 0.35 * total, rtol=1e-12, atol=0)
    for got, want in zip(
        torch.autograd.grad(penalty, params.values()),
        torch.autograd.grad(0.35 * total, params.values()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["linear", "groups"])
def test_autocast_does_not_round_a_penalty_in_a_basis(name):
    model, x, y = made(name)
    model, x = model.float(), x.float()
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=3)
    fisher = fisher_information(model, x, "empirical", targets=y, basis=basis)
    params = dict(model.named_parameters())
    anchors = {n: p.detach() + 0.1 for n, p in params.items()}
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            penalty = dwa_penalty(params, anchors, fisher, 0.7, basis)
            shapes = {n: p.shape for n, p in params.items()}
            back = {n: layer.restore(fisher[n], shapes)[n] for n, layer in basis.items()}
        found.append([penalty, *torch.autograd.grad(penalty, params.values()), *back.values()])
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_gate_draws_direction_by_direction():
    model, x, y = made("conv2d")
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=3)
    _, ours = two_losses(y)
    fisher, relative = fisher_and_relative(model, x, ours, targets=(y, y), basis=basis)
    gated = generalized_fisher(fisher, relative, probability=1.0)
    for name, value in gated.items():
        assert torch.equal(value, torch.where(relative[name] >= 0.5, fisher[name], 0))


def test_directions_come_back_from_weights_that_are_made_of_them():
    model, x, y = made("groups")
    for layer in kronecker_basis(model, x, "empirical", targets=y, rank=3).values():
        params = {n: p.detach() for n, p in model.named_parameters()}
        directions = layer.rotate(params)
        made_of_them = layer.restore(directions, {n: p.shape for n, p in params.items()})
        assert all(made_of_them[name].shape == params[name].shape for name in layer.parameters)
        torch.testing.assert_close(layer.rotate(made_of_them), directions, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank=0"), ({"rank": 2.0}, "rank=2.0"), ({"share": 0}, "share=0")],
)
def test_arguments_out_of_range_are_refused(options, message):
    model, x, y = made("linear")
    with pytest.raises(ValueError, match=message):
        kronecker_basis(model, x, "empirical", targets=y, **options)


def test_a_layer_without_the_bias_of_its_basis_is_refused():
    model, x, y = made("linear")
    basis = kronecker_basis(model, x, "empirical", targets=y)
    with pytest.raises(ValueError, match=r"'0\.bias'"):
        fisher_information(model, x, "empirical", ["0.weight"], targets=y, basis=basis)


@pytest.mark.parametrize("name", ["linear", "no bias", "conv2d", "strided", "many channels"])
def test_fisher_in_a_full_basis_is_the_ekfac_of_curvlinops(name):
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = made(name)
    theirs = curvlinops.EKFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=1000)
    fisher = fisher_information(model, x, "empirical", targets=y, basis=basis)
    vector = torch.randn(theirs.shape[1], dtype=torch.float64)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    pieces = zip(shapes.items(), vector.split(sizes), strict=True)
    values = {n: part.reshape(shape) for (n, shape), part in pieces}
    product = {}
    for weight, layer in basis.items():
        product |= layer.restore(fisher[weight] * layer.rotate(values), shapes)
    ours = torch.cat([product[n].flatten() for n in shapes])
    torch.testing.assert_close(ours, torch.as_tensor(theirs @ vector), rtol=1e-9, atol=1e-13)


def test_two_processes_have_the_basis_of_one(two_processes):
    both = two_processes(
        """
        from torch import nn
        from avalanche_cetl.information import fisher_information, kronecker, kronecker_basis

        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 8, 5), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)
        ).double()
        x, y = torch.randn(14, 2, 6, 6).double(), torch.arange(14) % 3
        own = slice(rank, None, 2)
        for kronecker._DENSE in (1000, 25):  # the second draws for 33 and 51 inputs
            options = {"rank": 3, "process_group": distributed.group.WORLD}
            basis = kronecker_basis(model, x[own], "empirical", targets=y[own], **options)
            alone = kronecker_basis(model, x, "empirical", targets=y, rank=3)
            for name, layer in basis.items():
                other = alone[name]
                for mine, its in ((layer.left, other.left), (layer.right, other.right)):
                    overlap = (mine.T @ its).abs()
                    wanted = torch.eye(len(overlap)).double()
                    assert torch.allclose(overlap, wanted, atol=1e-6), overlap
            whole = fisher_information(model, x, "empirical", targets=y, basis=basis)
            shared = fisher_information(
                model, x[own], "empirical", targets=y[own], basis=basis,
                process_group=distributed.group.WORLD,
            )
            assert all(torch.allclose(shared[n], value) for n, value in whole.items())
        """
    )
    both.succeed()
