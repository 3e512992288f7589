"""Plans are proven on the batch that is measured: what the trial cannot see counts too."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information, relative_fisher


def energy(out):
    """A loss per sample without targets."""
    return out.logsumexp(1)


class Masked(nn.Linear):
    """A layer whose plain attribute changes what it computes."""

    mask = None

    def forward(self, x):
        weight = self.weight if self.mask is None else self.weight * self.mask
        return F.linear(x, weight, self.bias)


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(Masked(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))


def test_a_loss_that_reads_the_whole_batch_is_tried_without_it(counted):
    model, x, y = _network()
    loss = lambda out: F.cross_entropy(out, y, reduction="none")  # noqa: E731
    wanted = fisher_information(model, x, "empirical", targets=y)
    for _ in range(3):
        found = fisher_information(model, x, loss)
    assert counted["plans"] == 1 and counted["proofs"] == 2
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_a_plan_that_fails_is_made_again_for_every_estimator(named_case):
    model, x, y = _network()
    losses = (named_case("mlp").losses, lambda out, t: out.square().sum(1))
    relative_fisher(model, x, losses, targets=(y, y))
    model[0].mask = torch.arange(30).reshape(5, 6) % 2
    fresh, _, _ = _network()
    fresh[0].mask = model[0].mask
    for estimator in ("gaussian", "rank", "histogram"):
        one, other = (
            relative_fisher(m, x, losses, targets=(y, y), estimator=estimator)
            for m in (model, fresh)
        )
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, msg=f"{estimator} {name}")


@pytest.mark.parametrize("first", ["another loss", "this loss"])
def test_parameters_that_the_loss_reads_by_itself_count(first, assert_exact):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double()
    model.register_parameter("proxies", nn.Parameter(torch.randn(3, 4).double()))
    x = torch.randn(9, 6).double()
    if first == "another loss":
        assert_exact(model, x, energy)
    assert_exact(model, x, lambda out: (out @ model.proxies.T).logsumexp(1))
    assert_exact(model, x, lambda out: energy(out) + model[0].weight.square().sum())


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_a_loss_that_depends_on_the_number_of_samples_is_that_of_one(chunk_bytes, naive_fisher):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3).double(), torch.randn(9, 6).double()
    found = fisher_information(model, x, lambda o: energy(o) / len(o), chunk_bytes=chunk_bytes)
    wanted = naive_fisher(model, x, energy)
    torch.testing.assert_close(found["weight"], wanted["weight"])


class _Rare(nn.Module):
    """Some samples read the weight a second time, the first two do not."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return h + (x[:, :1] > 0) * F.linear(h, self.a.weight)


def test_samples_behind_the_first_two_are_looked_at_too(assert_exact):
    torch.manual_seed(0)
    x = torch.randn(12, 6).double()
    x[:2, 0], x[2:, 0] = -1.0, x[2:, 0].abs()
    assert_exact(_Rare().double(), x, energy)


def test_samples_that_do_not_reach_a_layer_do_not_hide_how_it_is_used(named_case):
    case = named_case("sometimes attends")
    model, x, targets = case.make(9)
    x[:2, 0, 0] = -1.0
    x[2:, 0, 0] = 1.0
    found = fisher_information(model, x, "empirical", targets=targets)
    for key, rows in case.naive(model, x, targets).items():
        torch.testing.assert_close(found[key], rows.square().mean(0), rtol=1e-10, atol=1e-14)


class _Stateful(nn.Module):
    """Keeps its state as long as the batch has the same size."""

    def __init__(self):
        super().__init__()
        self.r, self.o, self.h = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3), None

    def forward(self, x):
        if self.h is not None and self.h.shape[1] != len(x):
            self.h = None
        y, h = self.r(x, self.h)
        self.h = h.detach()
        return self.o(y[:, -1])


def test_a_state_that_the_batch_size_decides_is_that_of_single_samples():
    torch.manual_seed(0)
    model, x = _Stateful().double(), torch.randn(7, 4, 6).double()
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(x)):
        model.h = None
        value = energy(model(x[i : i + 1]))[0]
        for name, g in zip(wanted, torch.autograd.grad(value, model.parameters()), strict=True):
            wanted[name] += g**2 / len(x)
    model.h = None
    for _ in range(2):
        found = fisher_information(model, x, energy)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14)
        model(x)  # leaves a state for batches of this size
