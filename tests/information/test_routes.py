"""Plans: kept while they hold, proven again when something may have changed, never wrong."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from avalanche_cetl import fisher_information, relative_fisher
from avalanche_cetl.information import routes
from avalanche_cetl.information.per_sample import PerSampleGradients

SCALE = None


class Masked(nn.Linear):
    """A layer whose plain attribute, buffer, closure or global may change what it computes."""

    mask = None

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("ones", torch.ones(sizes[1], sizes[0]))
        self.settings = {"masks": []}

    def forward(self, x):
        weight = self.weight * self.ones
        for mask in [*self.settings["masks"], *([] if self.mask is None else [self.mask])]:
            weight = weight * mask
        if SCALE is not None:
            weight = weight * SCALE
        return F.linear(x, weight, self.bias)


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(Masked(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))


def _naive(model, x, y):
    params = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        for name, g in zip(params, torch.autograd.grad(loss, params.values()), strict=True):
            total[name] += g**2 / len(x)
    return total


def _half(like):
    return (torch.arange(like.numel()).reshape(like.shape) % 2).to(like)


def mask_as_an_attribute(model):
    model[0].mask = _half(model[0].weight)
    return lambda: setattr(model[0], "mask", None)


def mask_in_a_dictionary(model):
    model[0].settings["masks"].append(_half(model[0].weight))
    return model[0].settings["masks"].clear


def mask_written_into_a_buffer(model):
    model[0].ones.copy_(_half(model[0].weight))
    return lambda: model[0].ones.fill_(1.0)


def hook(model):
    return model[0].register_forward_hook(lambda m, args, out: out * 2).remove


def hook_before(model):
    return model[0].register_forward_pre_hook(lambda m, args: (args[0] * 2,)).remove


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrization(model):
    parametrize.register_parametrization(model[2], "weight", Double())
    return lambda: parametrize.remove_parametrizations(model[2], "weight", False)


def pruning(model):
    prune.custom_from_mask(model[2], "weight", _half(model[2].weight))
    return lambda: prune.remove(model[2], "weight")


def forward_of_the_object(model):
    layer = model[2]
    layer.forward = lambda x: F.linear(x, layer.weight.tanh(), layer.bias)
    return lambda: delattr(layer, "forward")


def global_setting(model):
    _set_scale(_half(model[0].weight))
    return lambda: _set_scale(None)


def _set_scale(value):
    global SCALE
    SCALE = value


@pytest.fixture(autouse=True)
def no_global_setting():
    yield
    _set_scale(None)


CHANGES = [
    mask_as_an_attribute,
    mask_in_a_dictionary,
    mask_written_into_a_buffer,
    hook,
    hook_before,
    parametrization,
    pruning,
    forward_of_the_object,
    global_setting,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("off", [False, True])
def test_what_is_put_on_or_taken_off_between_two_measurements_counts_at_once(change, off):
    model, x, y = _network()
    take_off = change(model) if off else None
    fisher_information(model, x, "empirical", targets=y)
    if take_off is None:
        change(model)
    else:
        take_off()
    wanted = _naive(model, x, y)
    found = fisher_information(model, x, "empirical", targets=y)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14)


def test_what_is_read_from_afar_is_found_at_the_tenth_use_at_the_latest():
    class Afar:
        mask = None

    class Reading(nn.Linear):
        def forward(self, x):
            afar = Afar.__dict__["mask"]
            return F.linear(x, self.weight if afar is None else self.weight * afar, self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(Reading(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
    fisher_information(model, x, "empirical", targets=y)
    Afar.mask = _half(model[0].weight)
    for _ in range(10):
        found = fisher_information(model, x, "empirical", targets=y)
    for name, value in _naive(model, x, y).items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14)


@pytest.fixture
def counted(monkeypatch):
    """How often a plan was made, and how often a kept one was proven."""
    counts = {"plans": 0, "proofs": 0}
    plan, prove = routes._plan, PerSampleGradients._prove

    def planned(*args):
        counts["plans"] += 1
        return plan(*args)

    def proven(*args):
        counts["proofs"] += 1
        return prove(*args)

    monkeypatch.setattr(routes, "_plan", planned)
    monkeypatch.setattr(PerSampleGradients, "_prove", proven)
    return counts


def test_nothing_is_planned_twice_that_has_not_changed(counted):
    model, x, y = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        fisher_information(model, x, "empirical", targets=y)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert counted == {"plans": 1, "proofs": 0}
    for _ in range(10):
        fisher_information(model, x, "empirical", targets=y)
    assert counted == {"plans": 1, "proofs": 1}


class _Wrapper(nn.Module):
    """A view of a network that is made anew for every measurement, as CETL's are."""

    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, x):
        found = self.model(x)
        return tuple(found if name == "logits" else found.tanh() for name in self.outputs)


def test_a_wrapper_made_anew_is_not_planned_anew(counted):
    model, x, y = _network()
    for _ in range(3):
        for outputs in (("logits", "tanh"), ("tanh",)):
            fisher_information(
                _Wrapper(model, outputs), x,
                lambda out, y: F.cross_entropy(out[0], y, reduction="none"), targets=y,
            )  # fmt: skip
    assert counted["plans"] == 2


def test_a_loss_that_reads_the_whole_batch_is_tried_without_it(counted):
    model, x, y = _network()
    loss = lambda out: F.cross_entropy(out, y, reduction="none")  # noqa: E731
    wanted = fisher_information(model, x, "empirical", targets=y)
    for _ in range(12):
        found = fisher_information(model, x, loss)
    assert counted["plans"] == 1 and counted["proofs"] == 1
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_a_plan_that_fails_is_made_again_for_every_estimator(named_case):
    model, x, y = _network()
    losses = (named_case("mlp").losses, lambda out, t: out.square().sum(1))
    relative_fisher(model, x, losses, targets=(y, y))
    model[0].mask = _half(model[0].weight)
    fresh, _, _ = _network()
    fresh[0].mask = model[0].mask
    for estimator in ("gaussian", "rank", "histogram"):
        one, other = (
            relative_fisher(m, x, losses, targets=(y, y), estimator=estimator)
            for m in (model, fresh)
        )
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, msg=f"{estimator} {name}")


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class _Slow(nn.Module):
    """Nothing but plain autograd runs it."""

    def __init__(self):
        super().__init__()
        self.w, self.o = nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 3)

    def forward(self, x):
        return self.o(torch.tanh(x @ _Sign.apply(self.w)))


def test_the_log_says_once_for_each_model_that_it_is_slow_and_why(caplog):
    caplog.set_level(logging.WARNING, "avalanche_cetl")
    torch.manual_seed(0)
    one, two, x = _Slow(), _Slow(), torch.randn(5, 6)
    for model in (one, one, two):
        fisher_information(model, x)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all("_Slow" in m and "w" in m and "slow" in m and "setup_context" in m for m in messages)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_pairs_never_leave_a_single_sample_over(n):
    class Squeezing(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.o = nn.Conv2d(1, 4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.o(self.c(x).squeeze())

    torch.manual_seed(0)
    model, y = Squeezing().double(), torch.randint(3, (n,))
    x = torch.rand(n, 1, 4, 4, dtype=torch.float64)
    wanted = torch.zeros_like(model.o.weight)
    for i in range(n):
        loss = F.cross_entropy(model(x[[i, i]]), y[[i, i]])
        wanted += torch.autograd.grad(loss, model.o.weight)[0] ** 2 / n
    for chunk_bytes in (1, 2**20):
        found = fisher_information(model, x, "empirical", targets=y, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(found["o.weight"], wanted, rtol=1e-9, atol=1e-14)
