"""Relative Fisher information against the estimators on naive per-sample values."""

import logging

import pytest
import torch
from naive_gradients import gradients
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import relative_fisher
from avalanche_cetl.information import fisher_and_relative
from avalanche_cetl.information.estimators import ESTIMATORS, LOG_FLOOR


def _second(out, targets):
    return (out.flatten(1) * targets).sum(1).tanh() + out.flatten(1).square().sum(1)


class _TwoCodes(nn.Module):
    """A decoder that each loss reads by a call of its own, as CETL's is."""

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


def _two_codes():
    torch.manual_seed(0)
    inputs = torch.randn(24, 5).double(), torch.randn(24, 3).double()
    goal = torch.randn(24, 1, 5, 5).double()
    return _TwoCodes().double(), inputs, (_image_loss(0), _image_loss(1)), (goal, goal)


def _of_case(case):
    model, x, targets = case.make(24)
    weights = torch.randn_like(model.eval()(x).flatten(1)).detach()
    return model, (x,), (case.losses, _second), (targets, weights)


def _outer_logs(model, layer, inputs, loss, target):
    """Logs of a layer whose gradients are single outer products: the floor is on each factor."""
    calls = []
    handle = layer.register_forward_hook(lambda m, a, out: calls.append((a[0].detach(), out)))
    losses = loss(model(*inputs), target)
    handle.remove()
    gradients = torch.autograd.grad(losses.sum(), [out for _, out in calls], allow_unused=True)
    read = [(x, g) for (x, _), g in zip(calls, gradients, strict=True) if g is not None]
    if len(read) != 1:
        return None
    ((x, g),) = read
    if isinstance(layer, nn.Conv2d) and g[0, 0].numel() == 1:
        x, g = x.flatten(1), g.flatten(1)
    elif not isinstance(layer, nn.Linear) or g.dim() != 2:
        return None
    return (_log(g.square()).unsqueeze(2) + _log(x.square()).unsqueeze(1)).flatten(1)


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
    "two codes",
]


def _squares(model, inputs, loss, target):
    """Of every sample and parameter, one backward pass after another, ``(N, P)`` each."""
    parts = [part.split(1) for part in (*inputs, target)]
    values = [loss(model(*one), of).sum() for *one, of in zip(*parts, strict=True)]
    return {n: g.reshape(len(g), -1) ** 2 for n, g in gradients(model, values).items()}


@pytest.mark.parametrize(
    ("name", "estimator"),
    [("mlp", "gaussian"), ("mlp", "rank"), ("mlp", "histogram"), ("conv groups", "gaussian")],
)
def test_relative_fisher_of_layers_that_are_cut_into_pieces(named_case, name, estimator):
    model, inputs, losses, targets = _of_case(named_case(name))
    options = {"targets": targets, "estimator": estimator}
    whole = fisher_and_relative(model, inputs, losses, **options)[1]
    # Less than the gradients of one sample, and two or more weights at a time.
    for chunk_bytes in (64, 3000):
        found = fisher_and_relative(model, inputs, losses, chunk_bytes=chunk_bytes, **options)[1]
        for key, value in whole.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("chunk_bytes", [2**15, 2**20])
@pytest.mark.parametrize("estimator", ["gaussian", "rank", "histogram"])
@pytest.mark.parametrize("name", RELATIVE)
def test_relative_fisher_equals_the_estimator_on_naive_values(
    named_case, name, estimator, chunk_bytes
):
    made = _two_codes() if name == "two codes" else _of_case(named_case(name))
    model, inputs, losses, targets = made
    fisher, relative = fisher_and_relative(
        model,
        inputs,
        losses,
        targets=targets,
        estimator=estimator,
        chunk_bytes=chunk_bytes,
    )
    pairs = list(zip(losses, targets, strict=True))
    tasks = [_squares(model, inputs, *pair) for pair in pairs]
    for key, p in model.named_parameters():
        first, second = tasks[0][key], tasks[1][key]
        if estimator == "gaussian":
            logs = [_log(first), _log(second)]
            if key.endswith("weight") and name != "tied by a function":
                owner = model.get_submodule(key.rpartition(".")[0])
                outer = [_outer_logs(model, owner, inputs, *pair) for pair in pairs]
                logs = logs if any(of_task is None for of_task in outer) else outer
            alive = (first.sum(0) > 0) & (second.sum(0) > 0)
            wanted = torch.where(alive, _correlation(*logs), 0.0)
        else:
            wanted = ESTIMATORS[estimator](first, second)
        # Gradients that are zero but for rounding (a bias in front of a softmax) rank at random.
        real = (tasks[0][key].mean(0) > 1e-25) & (tasks[1][key].mean(0) > 1e-25)
        found = relative[key].flatten()
        torch.testing.assert_close(found[real], wanted[real], rtol=1e-7, atol=1e-9, msg=key)
        assert (found >= 0).all() and (found <= 1).all()
        mean = tasks[0][key].mean(0).view_as(p)
        torch.testing.assert_close(fisher[key], mean, rtol=1e-9, atol=1e-14, msg=key)


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


@pytest.mark.parametrize("place", [0, 1])
def test_a_loss_that_depends_on_the_other_samples_is_asked_one_sample_at_a_time(place, caplog):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double(), torch.randn(12, 4).double()

    def plain(out):
        return out.exp().sum(1)

    def depends(out):
        return (out * out.mean(0)).sum(1)

    losses = [plain, plain]
    losses[place] = depends
    with caplog.at_level(logging.WARNING, logger="avalanche_cetl"):
        found = relative_fisher(model, x, tuple(losses))
    assert "takes a backward pass for each sample" in caplog.text
    losses[place] = lambda out: out.square().sum(1)  # which it is for one sample
    wanted = relative_fisher(model, x, tuple(losses))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)
