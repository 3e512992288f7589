import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information, relative_fisher
from avalanche_cetl.information.fisher import sample_targets


def _conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * 9, 4),
    )


class _Tied(nn.Module):
    """One layer used twice, with a residual path."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = x + torch.tanh(self.layer(x))
        return self.head(torch.tanh(self.layer(x)) + x)


class _BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        self.net[1].running_mean.normal_()
        self.net[1].running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.net(x)


def _decoder():
    return nn.Sequential(
        nn.Linear(5, 2 * 9), nn.ReLU(), nn.Unflatten(1, (2, 3, 3)), nn.ConvTranspose2d(2, 1, 3, 2)
    )


class _InPlace(nn.Module):
    """In-place indexing by data, which vmap cannot batch: takes the loop."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        out = self.layer(x)
        return out * float(out.detach().abs().max())


CASES = {
    "linear": (lambda: nn.Linear(5, 3), (5,), "categorical", 3),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)),
        (5,),
        "categorical",
        3,
    ),
    "no bias": (lambda: nn.Linear(5, 3, bias=False), (5,), "categorical", 3),
    "conv": (_conv, (2, 5, 5), "categorical", 4),
    "tied and residual": (_Tied, (5,), "categorical", 3),
    "batch norm": (_BatchNorm, (5,), "categorical", 3),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)), (5,), "categorical", 3),
    "decoder": (_decoder, (5,), "gaussian", None),
    "loop": (_InPlace, (5,), "categorical", 3),
}


def _make(name, n):
    torch.manual_seed(3)
    build, shape, likelihood, classes = CASES[name]
    model = build().double()
    x = torch.randn(n, *shape, dtype=torch.float64)
    with torch.no_grad():
        targets = torch.randint(classes, (n,)) if classes else torch.randn_like(model.eval()(x))
    return model.train(), x, targets, likelihood


def _naive(model, x, targets, likelihood):
    """One sample, one backward pass, squares added up: obviously right."""
    model.eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        out = model(x[i : i + 1])
        if likelihood == "categorical":
            loss = F.cross_entropy(out, targets[i : i + 1])
        else:
            loss = 0.5 * (out - targets[i : i + 1]).pow(2).sum()
        loss.backward()
        for name, p in model.named_parameters():
            sums[name] += p.grad**2
    model.zero_grad()
    return {name: value / len(x) for name, value in sums.items()}


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_naive_loop(name, n):
    model, x, targets, likelihood = _make(name, n)
    found = fisher_information(model, x, "empirical", targets=targets, likelihood=likelihood)
    wanted = _naive(model, x, targets, likelihood)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("chunk_bytes", [1, 2000])
def test_chunks_and_order_do_not_matter(chunk_bytes):
    model, x, targets, likelihood = _make("conv", 7)
    whole = fisher_information(model, x, "empirical", targets=targets, likelihood=likelihood)
    order = torch.randperm(7)
    parts = fisher_information(
        model,
        x[order],
        "empirical",
        targets=targets[order],
        likelihood=likelihood,
        chunk_bytes=chunk_bytes,
    )
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-10, atol=1e-14)


def test_it_is_not_the_square_of_the_batch_mean():
    model, x, targets, _ = _make("mlp", 64)
    ours = fisher_information(model, x, "empirical", targets=targets)
    model.eval()
    F.cross_entropy(model(x), targets).backward()
    batch = sum((p.grad**2).sum() for p in model.parameters())
    assert sum(v.sum() for v in ours.values()) > 5 * batch


def test_modes_gradients_and_frozen_parameters_are_left_alone():
    model, x, targets, _ = _make("batch norm", 7)
    model.net[0].eval()
    model.net[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = fisher_information(model, x, "empirical", targets=targets)
    assert model.training and not model.net[0].training
    assert "net.0.weight" not in found and "net.0.bias" in found
    assert all(p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_modes_come_back_after_an_exception():
    model, x, _, _ = _make("mlp", 3)
    with pytest.raises(ZeroDivisionError):
        fisher_information(model, x, lambda out: 1 / 0)
    assert model.training


def test_sampled_labels_follow_the_model_and_the_seed():
    logits = torch.tensor([[0.0, 2.0]]).expand(20_000, 2)
    share = sample_targets(logits, "categorical", torch.Generator().manual_seed(0)).float().mean()
    assert abs(share - torch.sigmoid(torch.tensor(2.0))) < 0.01
    model, x, _, _ = _make("mlp", 7)
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
    return (out * targets).sum(1).tanh() + out.square().sum(1)


@pytest.mark.parametrize("normalize_samples", [False, True])
@pytest.mark.parametrize("estimator", ["gaussian", "rank", "histogram"])
def test_relative_fisher_of_a_model_equals_estimator_on_naive_values(estimator, normalize_samples):
    from avalanche_cetl.information.relative import ESTIMATORS

    model, x, labels, _ = _make("conv", 24)
    weights = torch.randn(24, 4, dtype=torch.float64)
    found = relative_fisher(
        model,
        x,
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), _second),
        targets=(labels, weights),
        estimator=estimator,
        normalize_samples=normalize_samples,
        chunk_bytes=20_000,
    )
    model.eval()
    values = []
    for losses in (F.cross_entropy(model(x), labels, reduction="none"), _second(model(x), weights)):
        rows = [
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            for loss in losses
        ]
        values.append([torch.stack(p).flatten(1) ** 2 for p in zip(*rows, strict=True)])
    if normalize_samples:
        for task in values:
            norm = sum(p.sum(1, keepdim=True) for p in task)
            task[:] = [p / norm for p in task]
    for (name, p), a, b in zip(model.named_parameters(), *values, strict=True):
        wanted = ESTIMATORS[estimator](a, b).view_as(p)
        torch.testing.assert_close(found[name], wanted, rtol=1e-8, atol=1e-10)
        assert (found[name] >= 0).all() and (found[name] <= 1).all()
