"""Relative Fisher information against the estimators on naive per-sample values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import relative_fisher
from avalanche_cetl.information.estimators import ESTIMATORS, LOG_FLOOR


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_relative_fisher_is_the_same_in_every_grad_mode(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
    losses = (
        lambda out, y: F.cross_entropy(out, y, reduction="none"),
        lambda out, y: out.square().sum(1),
    )
    wanted = relative_fisher(model, x, losses, targets=(y, y))
    with mode():
        found = relative_fisher(model, x + 0, losses, targets=(y + 0, y))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
