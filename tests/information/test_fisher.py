import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information, relative_fisher
from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information import fisher_and_relative
from avalanche_cetl.information.estimators import ESTIMATORS, LOG_FLOOR
from avalanche_cetl.information.gradients import plan as routes
from avalanche_cetl.information.gradients.layer_bundle import LayerBundle
from avalanche_cetl.information.gradients.plain import PlainGradients
from avalanche_cetl.information.likelihood import BoundLoss, sample_targets


@pytest.mark.parametrize("n", [1, 2, 7])
def test_equals_the_naive_loop(case, n):
    model, x, targets = case.make(n)
    found = fisher_information(model, x, "empirical", targets=targets, likelihood=case.likelihood)
    naive = case.naive(model, x, targets)
    assert found.keys() == naive.keys()
    for name, rows in naive.items():
        wanted = rows.square().mean(0)
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-14, msg=name)


def test_equals_the_naive_loop_on_a_large_batch_in_float32(case):
    model, x, targets = case.make(64)
    wanted = {name: rows.square().mean(0) for name, rows in case.naive(model, x, targets).items()}
    model.float()
    if x.is_floating_point():
        x = x.float()
    if targets.is_floating_point():
        targets = targets.float()
    found = fisher_information(model, x, "empirical", targets=targets, likelihood=case.likelihood)
    for name, value in wanted.items():
        error = torch.linalg.vector_norm(found[name].double() - value)
        assert error <= 1e-5 * torch.linalg.vector_norm(value) + 1e-12, name


def _plan(model, x):
    params = dict(model.eval().named_parameters())
    plain = PlainGradients(model, [x], params, ModelState(model))
    losses = [BoundLoss(lambda out: out.flatten(1).sum(1), None, len(x))]
    return routes.plan_routes(model, [x], params, losses, plain)[0]


CLOSED = [
    "linear", "tokens", "conv", "conv stride", "conv dilation", "conv groups", "conv depthwise",
    "conv circular", "conv 1d", "conv 3d", "transposed, padded", "transposed, dilated, grouped",
    "batch norm", "group norm", "layer norm over tokens", "embedding", "shared layer",
    "shared convolution", "tied weights", "residual", "unused and dead", "max pooling",
    "recurrent", "lstm",
]  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_known_layers_take_their_closed_form(named_case, name):
    model, x, _ = named_case(name).make(5)
    planned = _plan(model, x).routes
    assert {route.kind for route in planned.values()} == {"layer"}


def test_other_routes_are_taken_where_they_are_right_and_named(named_case, caplog):
    caplog.set_level(logging.DEBUG, "avalanche_cetl")
    model, x, _ = named_case("class token").make(5)
    planned = _plan(model, x).routes
    assert planned["token"].kind == planned["position"].kind == "expanded"
    assert planned["scale.gamma"].kind == "module" and "scale.gamma" in caplog.text
    assert planned["qkv.weight"].kind == "layer"
    model, x, _ = named_case("tied by a function").make(5)
    planned = _plan(model, x).routes
    assert planned["embedding.weight"].kind == "model"


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 20_000])
@pytest.mark.parametrize("name", ["max pooling", "conv groups", "embedding", "class token"])
def test_chunks_and_order_do_not_matter(named_case, name, chunk_bytes):
    case = named_case(name)
    model, x, targets = case.make(7)
    whole = fisher_information(model, x, "empirical", targets=targets)
    order = torch.randperm(7)
    parts = fisher_information(
        model, x[order], "empirical", targets=targets[order], chunk_bytes=chunk_bytes
    )
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-10, atol=1e-14)


def test_a_layer_larger_than_the_block_is_taken_in_parts(named_case, monkeypatch):
    monkeypatch.setattr("avalanche_cetl.information.gradients.batches._CPU_BLOCK", 64)
    for name in ("conv of many channels", "conv groups", "tokens", "transposed, padded"):
        case = named_case(name)
        model, x, targets = case.make(11)
        found = fisher_information(
            model, x, "empirical", targets=targets, likelihood=case.likelihood
        )
        for key, rows in case.naive(model, x, targets).items():
            torch.testing.assert_close(found[key], rows.square().mean(0), rtol=1e-10, atol=1e-14)


def test_sampled_targets_do_not_depend_on_chunks(named_case):
    for name in ("mlp", "transposed"):
        case = named_case(name)
        model, x, _ = case.make(9)
        whole, parts = (
            fisher_information(
                model,
                x,
                likelihood=case.likelihood,
                generator=torch.Generator().manual_seed(0),
                chunk_bytes=size,
            )
            for size in (2**20, 1)
        )
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-10, atol=1e-14)


def test_autocast_sums_in_float32(named_case):
    model, x, targets = named_case("residual").make(33)
    wanted = fisher_information(model, x, "empirical", targets=targets)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = fisher_information(model, x.float(), "empirical", targets=targets)
    for key, value in found.items():
        assert value.dtype == torch.float32
        error = torch.linalg.vector_norm(value - wanted[key])
        assert error <= 0.1 * torch.linalg.vector_norm(wanted[key])


def test_hooks_parameters_and_requirements_come_back_after_an_exception(named_case):
    model, x, _ = named_case("class token").make(5)
    model.head.bias.requires_grad_(False)

    def fail(out):
        raise ZeroDivisionError

    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(ZeroDivisionError):
        fisher_information(model, x, fail)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(p.requires_grad == (name != "head.bias") for name, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_samples_that_do_not_reach_a_layer_do_not_hide_how_it_is_used(named_case):
    case = named_case("sometimes attends")
    model, x, targets = case.make(9)
    x[:2, 0, 0] = -1.0
    x[2:, 0, 0] = 1.0
    found = fisher_information(model, x, "empirical", targets=targets)
    for key, rows in case.naive(model, x, targets).items():
        torch.testing.assert_close(found[key], rows.square().mean(0), rtol=1e-10, atol=1e-14)


def test_memory_of_the_whole_model_route_is_counted(named_case):
    model, x, _ = named_case("tied by a function").make(5)
    plan = _plan(model, x)
    assert plan.model_bytes > 0


def test_a_plan_that_proved_nothing_is_not_kept(named_case):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.gate = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return (x + self.gate * self.attend(x, x, x, need_weights=False)[0]).sum(1)

    torch.manual_seed(0)
    model, x = Gated().double(), torch.randn(6, 5, 4, dtype=torch.float64)
    y = torch.randint(4, (6,))
    fisher_information(model, x, "empirical", targets=y)
    model.gate.data.fill_(1.0)
    found = fisher_information(model, x, "empirical", targets=y)
    wanted = named_case("tokens").naive(model, x, y)
    for key, rows in wanted.items():
        torch.testing.assert_close(found[key], rows.square().mean(0), rtol=1e-10, atol=1e-14)


def test_a_changed_module_is_planned_anew(named_case):
    model, x, targets = named_case("mlp").make(6)
    fisher_information(model, x, "empirical", targets=targets)
    model[0] = nn.Sequential(nn.Linear(5, 7)).double()
    found = fisher_information(model, x, "empirical", targets=targets)
    wanted = named_case("mlp").naive(model, x, targets)
    torch.testing.assert_close(found["0.0.weight"], wanted["0.0.weight"].square().mean(0))


def test_plans_do_not_keep_models_alive():
    import gc
    import weakref

    model = nn.Linear(3, 2)
    fisher_information(model, torch.randn(4, 3))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_loss_that_is_not_per_sample_is_an_error():
    with pytest.raises(ValueError, match="one value per sample"):
        fisher_information(nn.Linear(3, 2), torch.randn(4, 3), lambda out: out.sum())


def test_it_is_not_the_square_of_the_batch_mean(named_case):
    model, x, targets = named_case("mlp").make(64)
    ours = fisher_information(model, x, "empirical", targets=targets)
    model.eval()
    F.cross_entropy(model(x), targets).backward()
    batch = sum((p.grad**2).sum() for p in model.parameters())
    assert sum(v.sum() for v in ours.values()) > 5 * batch


def test_modes_gradients_and_frozen_parameters_are_left_alone(named_case):
    model, x, targets = named_case("batch norm").make(7)
    model[0].eval()
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = fisher_information(model, x, "empirical", targets=targets)
    assert model.training and not model[0].training
    assert "0.weight" not in found and "0.bias" in found
    assert all(p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_modes_come_back_after_an_exception(named_case):
    model, x, _ = named_case("mlp").make(3)
    with pytest.raises(ZeroDivisionError):
        fisher_information(model, x, lambda out: 1 / 0)
    assert model.training


def test_sampled_labels_follow_the_model_and_the_seed(named_case):
    logits = torch.tensor([[0.0, 2.0]]).expand(20_000, 2)
    share = sample_targets(logits, "categorical", torch.Generator().manual_seed(0)).float().mean()
    assert abs(share - torch.sigmoid(torch.tensor(2.0))) < 0.01
    model, x, _ = named_case("mlp").make(7)
    one, two, other = (
        fisher_information(model, x, generator=torch.Generator().manual_seed(s))["0.weight"]
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_sampled_reconstruction_has_unit_noise():
    out = torch.full((4000, 1, 2, 2), 3.0)
    noise = sample_targets(out, "gaussian", torch.Generator().manual_seed(0)) - out
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_sampled_fisher_of_a_linear_gaussian_model_is_the_second_moment_of_its_input():
    # out = w x with unit noise: d log p / dw = noise * x, so F = E[x^2] for many samples.
    model = nn.Linear(1, 1, bias=False).double()
    x = 2 * torch.randn(20_000, 1, dtype=torch.float64)
    found = fisher_information(model, x, likelihood="gaussian")["weight"]
    assert abs(float(found) / float(x.square().mean()) - 1) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "exact"}, "sampled"),
        ({"loss": "empirical"}, "targets"),
        ({"likelihood": "poisson"}, "categorical"),
        ({"params": ["nope"]}, "nope"),
        ({"inputs": torch.zeros(0, 5)}, "number of samples"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, message):
    call = {"model": nn.Linear(5, 3), "inputs": torch.zeros(2, 5), **arguments}
    with pytest.raises(ValueError, match=message):
        fisher_information(**call)


def test_a_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ValueError, match="no parameter"):
        fisher_information(nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2))


def _second(out, targets):
    return (out.flatten(1) * targets).sum(1).tanh() + out.flatten(1).square().sum(1)


def _outer_logs(model, layer, x, loss, target):
    """Logs of a layer whose gradients are single outer products: the floor is on each factor."""
    calls = []
    handle = layer.register_forward_hook(lambda m, a, out: calls.append((a[0].detach(), out)))
    losses = loss(model(x), target)
    handle.remove()
    if len(calls) != 1:
        return None
    inside, out = calls[0]
    (g,) = torch.autograd.grad(losses.sum(), out)
    if isinstance(layer, nn.Conv2d) and g[0, 0].numel() == 1:
        inside, g = inside.flatten(1), g.flatten(1)
    elif not isinstance(layer, nn.Linear) or g.dim() != 2:
        return None
    return (_log(g.square()).unsqueeze(2) + _log(inside.square()).unsqueeze(1)).flatten(1)


def _log(values):
    return torch.log(values / values.mean(0) + LOG_FLOOR)


def _correlation(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a * b).mean(0) / (a.square().mean(0) * b.square().mean(0)).sqrt()).abs()


RELATIVE = [
    "prompt, number, table",
    "tokens",
    "max pooling",
    "conv groups",
    "conv to one pixel",
    "transposed",
    "class token",
    "embedding",
    "tied by a function",
    "shared layer",
    "residual",
]


@pytest.mark.parametrize("chunk_bytes", [2**20, 2**15])
@pytest.mark.parametrize("normalize_samples", [False, True])
@pytest.mark.parametrize("estimator", ["gaussian", "rank", "histogram"])
@pytest.mark.parametrize("name", RELATIVE)
def test_relative_fisher_equals_the_estimator_on_naive_values(
    named_case, name, estimator, normalize_samples, chunk_bytes
):
    case = named_case(name)
    model, x, targets = case.make(24)
    model.eval()
    weights = torch.randn_like(model(x).flatten(1)).detach()
    losses = (case.losses, _second)
    found = relative_fisher(
        model,
        x,
        losses,
        targets=(targets, weights),
        estimator=estimator,
        normalize_samples=normalize_samples,
        chunk_bytes=chunk_bytes,
    )
    params = dict(model.named_parameters())
    tasks, norms = [], []
    for loss, target in zip(losses, (targets, weights), strict=True):
        rows = [
            torch.autograd.grad(loss(model(x[i : i + 1]), target[i : i + 1]).sum(), params.values())
            for i in range(len(x))
        ]
        squares = [torch.stack(p).reshape(len(x), -1) ** 2 for p in zip(*rows, strict=True)]
        tasks.append(dict(zip(params, squares, strict=True)))
        norms.append(sum(p.sum(1, keepdim=True) for p in squares))
    for key, p in params.items():
        first, second = tasks[0][key], tasks[1][key]
        owner = model.get_submodule(key.rpartition(".")[0])
        if estimator == "gaussian":
            logs = [_log(first), _log(second)]
            if key.endswith("weight") and name != "tied by a function":
                pairs = zip(losses, (targets, weights), strict=True)
                outer = [_outer_logs(model, owner, x, f, t) for f, t in pairs]
                logs = logs if outer[0] is None else outer
            if normalize_samples:
                logs = [log - norm.log() for log, norm in zip(logs, norms, strict=True)]
            wanted = _correlation(*logs).view_as(p)
            alive = ((first.sum(0) > 0) & (second.sum(0) > 0)).view_as(p)
            wanted = torch.where(alive, wanted, torch.zeros_like(wanted))
        else:
            if normalize_samples:
                first, second = first / norms[0], second / norms[1]
            wanted = ESTIMATORS[estimator](first, second).view_as(p)
        # Gradients that are zero but for rounding (a bias in front of a softmax) rank at random.
        real = (first.mean(0) > 1e-25).view_as(p) & (second.mean(0) > 1e-25).view_as(p)
        torch.testing.assert_close(
            found[key][real], wanted[real], rtol=1e-7, atol=1e-9, msg=f"{key} {found[key]}"
        )
        assert (found[key] >= 0).all() and (found[key] <= 1).all()


def test_relative_fisher_is_symmetric_and_scale_free(named_case):
    case = named_case("max pooling")
    model, x, targets = case.make(24)
    weights = torch.randn(24, 4, dtype=torch.float64)

    def large(out, t):
        return 1e3 * _second(out, t)

    one = relative_fisher(model, x, (case.losses, _second), targets=(targets, weights))
    two = relative_fisher(model, x, (large, case.losses), targets=(weights, targets))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-9, atol=1e-11)


def test_relative_fisher_is_zero_where_a_task_does_not_reach(named_case):
    model, x, targets = named_case("mlp").make(12)
    found = relative_fisher(
        model,
        x,
        (lambda out, t: F.cross_entropy(out, t, reduction="none"), lambda out: 0 * out.sum(1)),
        targets=(targets, None),
    )
    assert all(not value.any() for value in found.values())


class _TwoCodes(nn.Module):
    """A decoder read from two codes, as CETL's is; with a convolution, and a place for both."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 4), nn.Linear(3, 4)
        self.decoder = nn.Sequential(
            nn.Tanh(), nn.Linear(4, 18), nn.Tanh(), nn.Unflatten(1, (2, 3, 3)),
            nn.ConvTranspose2d(2, 1, 3),
        )  # fmt: skip

    def forward(self, a, b):
        return self.decoder(self.one(a)), self.decoder(self.two(b))


def _image_loss(index):
    return lambda outputs, goal: 0.5 * (outputs[index] - goal).square().flatten(1).sum(1)


@pytest.mark.parametrize("chunk_bytes", [2**29, 2**15])
@pytest.mark.parametrize("estimator", ["gaussian", "rank"])
def test_losses_that_read_calls_of_their_own(estimator, chunk_bytes, monkeypatch):
    torch.manual_seed(0)
    model = _TwoCodes().double()
    inputs = torch.randn(20, 5).double(), torch.randn(20, 3).double()
    goal = torch.randn(20, 1, 5, 5).double()
    losses = (_image_loss(0), _image_loss(1))
    outer = []
    plain = LayerBundle.outer
    monkeypatch.setattr(
        LayerBundle, "outer", lambda self, k: outer.append(found := plain(self, k)) or found
    )
    fisher, relative = fisher_and_relative(
        model, inputs, losses, targets=(goal, goal), estimator=estimator, chunk_bytes=chunk_bytes
    )
    # The decoder's Linear layer keeps its closed form, although it is called twice.
    assert any(found is not None for found in outer)
    params = dict(model.named_parameters())
    for name, p in params.items():
        values = []
        for loss in losses:
            grads = [
                torch.autograd.grad(
                    loss(model(*(part[i : i + 1] for part in inputs)), goal[i : i + 1]).sum(),
                    p, allow_unused=True,
                )[0] for i in range(20)
            ]  # fmt: skip
            values.append(torch.stack([torch.zeros_like(p) if g is None else g for g in grads]))
        first, second = (v.flatten(1).square() for v in values)
        torch.testing.assert_close(fisher[name], first.mean(0).view_as(p), rtol=1e-10, atol=1e-14)
        if name in ("decoder.1.weight",) and estimator == "gaussian":
            continue  # its floor is on either factor: compared below
        wanted = ESTIMATORS[estimator](first, second).view_as(p)
        torch.testing.assert_close(relative[name], wanted, rtol=1e-7, atol=1e-9)
    if estimator == "gaussian":
        logs = []
        for code, (adapter, part) in enumerate(zip((model.one, model.two), inputs, strict=True)):
            hidden = adapter(part).tanh()
            out = model.decoder[1](hidden)
            image = model.decoder[4](out.tanh().unflatten(1, (2, 3, 3)))
            (g,) = torch.autograd.grad(losses[code]((image, image), goal).sum(), out)
            pair = _log(g.square()).unsqueeze(2) + _log(hidden.detach().square()).unsqueeze(1)
            logs.append(pair.flatten(1))
        wanted = _correlation(*logs).view_as(model.decoder[1].weight)
        torch.testing.assert_close(relative["decoder.1.weight"], wanted, rtol=1e-7, atol=1e-9)


class _Mixing(nn.Module):
    """Mixes its samples, so that torch.func runs it; one parameter is never used."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x + 0.1 * x.mean(0))


@pytest.mark.parametrize("n", [2, 20])
def test_a_model_for_torch_func_may_have_an_unused_parameter(n):
    torch.manual_seed(0)
    model, x = _Mixing().double(), torch.randn(n, 4).double()
    fisher, relative = fisher_and_relative(
        model, x, (lambda out: out.square().sum(1), lambda out: out.exp().sum(1))
    )
    assert not fisher["unused"].any() and not relative["unused"].any()
    rows = [
        torch.autograd.grad(model(x[i : i + 1]).square().sum(), model.layer.weight)[0]
        for i in range(n)
    ]
    torch.testing.assert_close(fisher["layer.weight"], torch.stack(rows).square().mean(0))


class _Kink(nn.Module):
    """A unit at the kink of its ReLU, where float32 rounds otherwise for a batch of one."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)
        nn.init.zeros_(self.one.bias)

    def forward(self, x):
        out = self.one(x)
        if out.dtype == torch.float32:
            out = out + (1e-9 if len(x) == 1 else -1e-9)
        return self.two(out.relu())


def test_rounding_at_a_kink_costs_no_closed_form():
    torch.manual_seed(0)
    model, x = _Kink(), torch.randn(20, 4)
    x[0] = 0.0
    planned = _plan(model, x).routes
    assert {route.kind for route in planned.values()} == {"layer"}
