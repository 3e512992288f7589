"""Fisher information in Kronecker bases, against the naive loop ``U^T G_n V``."""

import pytest
import torch
from naive_bases import quadratic, rotated
from naive_gradients import assert_close, gradients
from networks import Of
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
from avalanche_cetl.information.likelihood import negative_log_likelihood

#: Of the shared cases, those with layers that have a weight matrix.
NAMES = [
    "mlp", "linear without bias", "tokens", "conv 1d", "conv dilation", "conv stride",
    "conv to one pixel", "conv stride, many channels", "conv reflect", "conv groups",
    "conv depthwise", "conv depthwise with bias", "conv 3d", "transposed",
    "transposed, dilated, grouped", "group norm", "layer norm", "shared layer",
]  # fmt: skip


@pytest.fixture
def made(named_case):
    """A network, its samples, and how it is measured."""

    def make(name, count=12):
        case = named_case(name)
        model, x, targets = case.make(count)
        options = {"loss": "empirical", "targets": targets, "likelihood": case.likelihood}
        return model.eval(), x, options, case.losses

    return make


def per_sample(model, x, loss, targets):
    """The gradients of every sample by parameter."""
    pairs = zip(x.split(1), targets.split(1), strict=True)
    return gradients(model, [loss(model(one), target).sum() for one, target in pairs])


def second_loss(out, targets):
    return out.flatten(1).square().sum(1) * (1 + targets.flatten(1).sum(1) ** 2)


def wanted(found, basis):
    """Per-sample values by the names that a basis measures."""
    count = len(next(iter(found.values())))
    rows = [{name: g[n] for name, g in found.items()} for n in range(count)]
    values = {n: torch.stack([rotated(layer, row) for row in rows]) for n, layer in basis.items()}
    others = {n: g for n, g in found.items() if n not in basis and n not in basis.folded}
    return values | others


def assert_means_of_squares(fisher, values, basis):
    squares = {n: v.square().mean(0) for n, v in wanted(values, basis).items()}
    assert_close(fisher, squares, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("rank_", [64, 2])
@pytest.mark.parametrize("name", NAMES)
def test_fisher_in_a_basis_is_the_mean_square_of_rotated_gradients(made, name, rank_):
    model, x, options, loss = made(name)
    basis = kronecker_basis(model, x, rank=rank_, **options)
    fisher = fisher_information(model, x, basis=basis, **options)
    assert_means_of_squares(fisher, per_sample(model, x, loss, options["targets"]), basis)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_basis_keeps_the_sum_of_the_fisher_information(made, name):
    model, x, options, _ = made(name)
    basis = kronecker_basis(model, x, rank=1000, **options)
    within = fisher_information(model, x, basis=basis, **options)
    plain = fisher_information(model, x, **options)
    for weight, layer in basis.items():
        total = sum(plain[one].sum() for one in layer.parameters)
        torch.testing.assert_close(within[weight].sum(), total, rtol=1e-10, atol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp", "conv groups", "group norm"])
def test_few_samples_are_measured_in_the_basis_of_many(made, name, count):
    model, x, options, loss = made(name)
    basis = kronecker_basis(model, x, rank=3, **options)
    options["targets"] = options["targets"][:count]
    fisher = fisher_information(model, x[:count], basis=basis, **options)
    found = per_sample(model, x[:count], loss, options["targets"])
    assert_means_of_squares(fisher, found, basis)


def test_fisher_in_a_basis_does_not_depend_on_the_room_for_activations(made):
    model, x, options, _ = made("conv dilation", 24)
    basis = kronecker_basis(model, x, rank=3, **options)
    small = kronecker_basis(model, x, rank=3, chunk_bytes=20_000, **options)
    for name, layer in basis.items():
        for one, other in ((layer.right, small[name].right), (layer.left, small[name].left)):
            overlap = (one.T @ other).abs()  # the same directions, up to their sign
            torch.testing.assert_close(overlap, torch.eye(len(overlap)).double(), atol=1e-8, rtol=0)
    whole = fisher_information(model, x, basis=basis, **options)
    pieces = fisher_information(model, x, basis=basis, chunk_bytes=20_000, **options)
    assert_close(pieces, whole, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("chunk_bytes", [2**29, 20_000])
@pytest.mark.parametrize("name", ["mlp", "conv dilation", "conv depthwise", "group norm"])
def test_basis_and_fisher_at_once_are_those_of_one_after_the_other(made, name, chunk_bytes):
    model, x, options, _ = made(name, 24)
    options |= {"chunk_bytes": chunk_bytes}
    alone = kronecker_basis(model, x, rank=3, **options)
    loss = negative_log_likelihood(options["likelihood"])
    fisher, basis = kronecker.kronecker_fisher(
        model, x, loss, targets=options["targets"], rank=3, chunk_bytes=chunk_bytes
    )
    wanted = fisher_information(model, x, basis=alone, **options)
    assert basis.keys() == alone.keys()
    assert_close(fisher, wanted, rtol=1e-12, atol=0)
    for one, layer in basis.items():
        assert torch.equal(layer.left, alone[one].left)
        assert torch.equal(layer.right, alone[one].right)


def test_layers_with_many_positions_are_read_on_evenly_spaced_samples(made, monkeypatch):
    monkeypatch.setattr(kronecker, "_LEAST", 6)
    monkeypatch.setattr(kronecker, "_ROWS", 1)
    model, x, options, _ = made("conv dilation", 24)
    every = kronecker_basis(model, x, rank=3, **options)
    targets = options.pop("targets")
    fourth = kronecker_basis(model, x[::4], rank=3, targets=targets[::4], **options)
    small = kronecker_basis(model, x, rank=3, targets=targets, chunk_bytes=20_000, **options)
    for found in (every["0.weight"], small["0.weight"]):
        for one, other in (
            (found.left, fourth["0.weight"].left),
            (found.right, fourth["0.weight"].right),
        ):
            torch.testing.assert_close(
                (one.T @ other).abs(), torch.eye(one.shape[1]).double(), atol=1e-8, rtol=0
            )


def test_the_leading_eigenvectors_of_a_large_matrix_hold_what_the_exact_ones_hold(monkeypatch):
    monkeypatch.setattr(kronecker, "_LARGE", 90)
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(2, 120, 120).double()).Q
    matrix = turn * torch.arange(1.0, 121).double() ** -1.5 @ turn.mT
    exact = torch.linalg.eigvalsh(matrix).flip(-1)[:, :6]
    for dtype in (torch.float32, torch.float64):
        values, vectors = kronecker._leading(matrix, 6, dtype)
        vectors = vectors[..., :6]
        assert vectors.dtype == torch.float64
        held = vectors.mT @ matrix @ vectors
        torch.testing.assert_close(held.diagonal(0, -2, -1), exact, rtol=1e-3, atol=0)
        torch.testing.assert_close(values[:, :6], exact, rtol=1e-3, atol=0)
        unit = torch.eye(6).double().expand(2, 6, 6)
        torch.testing.assert_close(vectors.mT @ vectors, unit, rtol=0, atol=1e-12)


def both_losses(made, name, **estimator):
    """Fisher and relative Fisher of two losses in a basis, and squares of rotated gradients."""
    model, x, options, loss = made(name, 30)
    losses, targets = (loss, second_loss), options["targets"]
    targets = (targets, targets.reshape(len(targets), -1).double())
    basis = kronecker_basis(model, x, rank=3, **options)
    fisher, relative = fisher_and_relative(
        model, x, losses, targets=targets, basis=basis, **estimator
    )
    pairs = zip(losses, targets, strict=True)
    values = [wanted(per_sample(model, x, loss, of_loss), basis) for loss, of_loss in pairs]
    squares = [{n: v.square().flatten(1) for n, v in of_loss.items()} for of_loss in values]
    return fisher, relative, squares


@pytest.mark.parametrize(("estimator", "naive"), [("rank", rank), ("histogram", histogram)])
@pytest.mark.parametrize("name", ["mlp", "conv dilation", "conv groups", "transposed"])
def test_relative_fisher_in_a_basis_is_the_estimate_from_rotated_gradients(
    made, name, estimator, naive
):
    fisher, relative, (first, second) = both_losses(made, name, estimator=estimator)
    for one, value in relative.items():
        wanted = naive(first[one], second[one])
        torch.testing.assert_close(value.flatten(), wanted, rtol=1e-8, atol=1e-10)
        mean = first[one].mean(0)
        torch.testing.assert_close(fisher[one].flatten(), mean, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["conv dilation", "conv groups", "transposed"])
def test_gaussian_relative_fisher_in_a_basis_is_that_of_rotated_gradients(made, name):
    _, relative, (first, second) = both_losses(made, name)
    weight = "2.weight" if name == "transposed" else "0.weight"
    naive = gaussian(first[weight], second[weight])
    torch.testing.assert_close(relative[weight].flatten(), naive, rtol=1e-8, atol=1e-8)


def test_the_gate_draws_direction_by_direction(made):
    fisher, relative, _ = both_losses(made, "conv dilation")
    gated = generalized_fisher(fisher, relative, probability=1.0)
    for name, value in gated.items():
        assert torch.equal(value, torch.where(relative[name] >= 0.5, fisher[name], 0))


def factors_of(model, layer, x, y, unfold):
    """Kronecker factors by hooks: of inputs with a one beside them, and of output gradients."""
    kept = {}
    hook = layer.register_forward_hook(lambda _m, i, o: kept.update(a=i[0].detach(), o=o))
    out = model(x)
    hook.remove()
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
        ("mlp", lambda a: a.unsqueeze(1)),
        ("wide", lambda a: a.unsqueeze(1)),  # more inputs than samples
        ("conv dilation", lambda a: F.unfold(a, 2, padding=(0, 2), dilation=(2, 3)).mT),
        ("conv stride, many channels", lambda a: F.unfold(a, 3, stride=(2, 1)).mT),
    ],
)
def test_the_basis_has_the_leading_eigenvectors_of_both_factors(made, name, unfold):
    model, x, options, _ = made("mlp" if name == "wide" else name)
    if name == "wide":
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(30, 14), nn.Tanh(), nn.Linear(14, 3)).double()
        x, options["targets"] = torch.randn(12, 30).double(), torch.arange(12) % 3
    layer = kronecker_basis(model, x, rank=3, **options)["0.weight"]
    inputs, outputs = factors_of(model, model[0], x, options["targets"], unfold)
    for factor, vectors in ((inputs, layer.right), (outputs, layer.left)):
        values = torch.linalg.eigvalsh(factor).flip(0)[: vectors.shape[1]]
        torch.testing.assert_close(vectors.T @ factor @ vectors, values.diag(), rtol=0, atol=1e-12)


def test_one_direction_is_the_least_rank():
    model, x = nn.Linear(4, 3), torch.randn(12, 4)
    y = torch.arange(12) % 3
    assert kronecker_basis(model, x, "empirical", targets=y, rank=1)["weight"].shape == (1, 1)
    for least in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"rank=.* has to be a whole number >= 1"):
            kronecker_basis(model, x, "empirical", targets=y, rank=least)


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


def test_large_factors_of_a_layer_with_groups_give_the_same_directions(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 3)).double()
    x, y = torch.randn(40, 4, 5, 5).double(), torch.arange(40) % 3
    rank = 19  # all inputs of a group: 2 x 3 x 3, and the bias
    dense = kronecker_basis(model, x, "empirical", targets=y, rank=rank)["0.weight"].right
    monkeypatch.setattr(kronecker, "_DENSE", 10)
    monkeypatch.setattr(kronecker, "_OVERSAMPLING", -1)  # fewer vectors than inputs
    drawn = kronecker_basis(model, x, "empirical", targets=y, rank=rank)["0.weight"].right
    assert drawn.shape == (2, 19, 18) and dense.shape == (2, 19, 19)
    held = (dense.mT @ drawn).square().sum(-1)  # of each direction, the last one is left out
    assert float(held[:, :12].min()) > 0.5 and float((held.sum(-1) - 18).abs().max()) < 1e-9


def test_large_factors_take_three_passes_over_the_images(monkeypatch):
    model, read = nn.Sequential(nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 3)), []
    model[0].register_forward_hook(lambda *_: read.append(1))
    x, y = torch.randn(400, 60), torch.arange(400) % 3
    counts = []
    for dense in (100, 100, 30):  # the first chooses how gradients are computed
        monkeypatch.setattr(kronecker, "_DENSE", dense)
        read.clear()
        kronecker_basis(model, x, "empirical", targets=y, rank=4, chunk_bytes=20_000)
        counts.append(len(read))
    assert counts[2] == 3 * counts[1] > 3


def test_rounding_in_single_precision_keeps_no_direction_without_information():
    torch.manual_seed(0)
    model, x = nn.Linear(30, 12), torch.randn(4, 30)
    y = torch.arange(4) % 12
    for scale in (1.0, 1 + 1e-6, 0.3):  # four samples have four directions on either side
        layer = kronecker_basis(model, scale * x, "empirical", targets=y)["weight"]
        assert layer.shape == (4, 4)


def test_shared_layers_stay_diagonal(made):
    model, x, options, _ = made("shared layer")
    basis = kronecker_basis(model, x, **options)
    fisher = fisher_information(model, x, basis=basis, **options)
    plain = fisher_information(model, x, **options)
    shared = [name for name in plain if name not in basis and name not in basis.folded]
    assert basis and shared
    for name in shared:
        torch.testing.assert_close(fisher[name], plain[name], rtol=1e-10, atol=0)


@pytest.mark.parametrize("count", [2, 9])
def test_a_bias_that_is_read_elsewhere_too_stays_out_of_the_basis(count):
    torch.manual_seed(0)
    model = Of(
        lambda m, x: m.head(torch.tanh(m.layer(x)) * m.layer.bias),
        layer=nn.Linear(5, 4), head=nn.Linear(4, 3),
    ).double()  # fmt: skip
    x, y = torch.randn(9, 5).double(), torch.arange(9) % 3
    basis = kronecker_basis(model, x, "empirical", targets=y, rank=3)
    assert "layer.bias" not in basis.folded and "head.bias" in basis.folded
    x, y = x[:count], y[:count]
    fisher = fisher_information(model, x, "empirical", targets=y, basis=basis)
    assert_means_of_squares(fisher, per_sample(model, x, F.cross_entropy, y), basis)


@pytest.mark.parametrize("name", ["mlp", "conv groups", "transposed", "group norm"])
def test_the_penalty_in_a_basis_is_eq_11_over_directions(made, name):
    model, x, options, _ = made(name)
    basis = kronecker_basis(model, x, rank=3, **options)
    fisher = fisher_information(model, x, basis=basis, **options)
    anchors = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
    params = dict(model.named_parameters())
    penalty = dwa_penalty(params, anchors, fisher, 0.7, basis)
    total = quadratic(fisher, basis, {n: p - anchors[n] for n, p in params.items()})
    torch.testing.assert_close(penalty, 0.35 * total, rtol=1e-12, atol=0)
    for got, want in zip(
        torch.autograd.grad(penalty, params.values()),
        torch.autograd.grad(0.35 * total, params.values()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["mlp", "conv groups"])
def test_autocast_does_not_round_a_penalty_in_a_basis(made, name):
    model, x, options, _ = made(name)
    model, x = model.float(), x.float()
    basis = kronecker_basis(model, x, rank=3, **options)
    fisher = fisher_information(model, x, basis=basis, **options)
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


def test_directions_come_back_from_weights_that_are_made_of_them(made):
    model, x, options, _ = made("conv groups")
    for layer in kronecker_basis(model, x, rank=3, **options).values():
        params = {n: p.detach() for n, p in model.named_parameters()}
        directions = layer.rotate(params)
        made_of_them = layer.restore(directions, {n: p.shape for n, p in params.items()})
        assert all(made_of_them[name].shape == params[name].shape for name in layer.parameters)
        torch.testing.assert_close(layer.rotate(made_of_them), directions, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank_", [0, 2.0])
def test_ranks_out_of_range_are_refused(made, rank_):
    model, x, options, _ = made("mlp")
    with pytest.raises(ValueError, match=f"rank={rank_}"):
        kronecker_basis(model, x, rank=rank_, **options)


def test_a_layer_without_the_bias_of_its_basis_is_refused(made):
    model, x, options, _ = made("mlp")
    basis = kronecker_basis(model, x, **options)
    with pytest.raises(ValueError, match=r"'0\.bias'"):
        fisher_information(model, x, params=["0.weight"], basis=basis, **options)


@pytest.mark.parametrize(
    "name",
    ["mlp", "linear without bias", "conv dilation", "conv stride", "conv stride, many channels"],
)
def test_fisher_in_a_full_basis_is_the_ekfac_of_curvlinops(made, name):
    curvlinops = pytest.importorskip("curvlinops")
    model, x, options, _ = made(name)
    theirs = curvlinops.EKFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, options["targets"])],
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    basis = kronecker_basis(model, x, rank=1000, **options)
    fisher = fisher_information(model, x, basis=basis, **options)
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
