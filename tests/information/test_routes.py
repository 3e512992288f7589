"""Plans: kept while they hold, proven again when something may have changed, never wrong."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from avalanche_cetl import fisher_information, relative_fisher
from avalanche_cetl.information.gradients import plan as routes
from avalanche_cetl.information.gradients.engine import PerSampleGradients

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


def hook_of_a_parameter(model):
    return model[0].weight.register_hook(lambda g: g * 0).remove


def hook_in_the_place_of_another(model):
    layer = model[2]
    handle = layer.register_forward_hook(lambda m, args, out: None)
    handle.remove()
    return layer.register_forward_hook(lambda m, args, out: out + out @ m.weight[:, :3]).remove


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
    hook_of_a_parameter,
    hook_in_the_place_of_another,
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
    # In full when it is made, and with one sample after each step.
    assert counted == {"plans": 1, "proofs": 5}
    for _ in range(4):
        fisher_information(model, x, "empirical", targets=y)
    assert counted == {"plans": 1, "proofs": 6}
    for _ in range(2):  # the tenth use since it was proven in full
        fisher_information(model, x, "empirical", targets=y)
    assert counted == {"plans": 1, "proofs": 7}


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
    for _ in range(3):
        found = fisher_information(model, x, loss)
    assert counted["plans"] == 1 and counted["proofs"] == 2
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


def _by_hand(model, x, loss, params):
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for i in range(len(x)):
        value = loss(model(x[i : i + 1]))[0]
        found = torch.autograd.grad(value, params.values(), allow_unused=True)
        for name, g in zip(params, found, strict=True):
            total[name] += 0 if g is None else g**2 / len(x)
    return total


def _assert_right(model, x, loss):
    found = fisher_information(model, x, loss)
    for name, value in _by_hand(model, x, loss, dict(model.named_parameters())).items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14, msg=name)


def _energy(out):
    return out.logsumexp(1)


@pytest.mark.parametrize("first", ["another loss", "this loss"])
def test_parameters_that_the_loss_reads_by_itself_count(first):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double()
    model.register_parameter("proxies", nn.Parameter(torch.randn(3, 4).double()))
    x = torch.randn(9, 6).double()
    if first == "another loss":
        _assert_right(model, x, _energy)
    _assert_right(model, x, lambda out: (out @ model.proxies.T).logsumexp(1))
    _assert_right(model, x, lambda out: _energy(out) + model[0].weight.square().sum())


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_a_loss_that_depends_on_the_number_of_samples_is_that_of_one(chunk_bytes):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3).double(), torch.randn(9, 6).double()
    found = fisher_information(model, x, lambda o: _energy(o) / len(o), chunk_bytes=chunk_bytes)
    wanted = _by_hand(model, x, _energy, dict(model.named_parameters()))
    torch.testing.assert_close(found["weight"], wanted["weight"])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out: _energy(out)[:4], "gave 4 values for 9 samples"),
        (lambda out: out.argmax(1), "no gradient"),
        (lambda out: _energy(out).detach(), "no gradient"),
    ],
    ids=["too few", "whole numbers", "detached"],
)
def test_losses_without_a_gradient_of_each_sample_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        fisher_information(nn.Linear(6, 3), torch.randn(9, 6), loss)


class _Rare(nn.Module):
    """Some samples read the weight a second time, the first two do not."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return h + (x[:, :1] > 0) * F.linear(h, self.a.weight)


def test_samples_behind_the_first_two_are_looked_at_too():
    torch.manual_seed(0)
    x = torch.randn(12, 6).double()
    x[:2, 0], x[2:, 0] = -1.0, x[2:, 0].abs()
    _assert_right(_Rare().double(), x, _energy)


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
        value = _energy(model(x[i : i + 1]))[0]
        for name, g in zip(wanted, torch.autograd.grad(value, model.parameters()), strict=True):
            wanted[name] += g**2 / len(x)
    model.h = None
    for _ in range(2):
        found = fisher_information(model, x, _energy)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14)
        model(x)  # leaves a state for batches of this size


class _Settings:
    twice = False


class _Configured(nn.Linear):
    scale = 1.0

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.settings, self.named = _Settings(), {"a"}

    def forward(self, x):
        weight = self.weight * self.scale
        if self.settings.twice or "b" in self.named:
            weight = weight * weight
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize("what", ["object", "set", "class"])
def test_settings_kept_elsewhere_are_seen(what, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(_Configured(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(7, 6).double()
    _assert_right(model, x, _energy)
    if what == "object":
        model[0].settings.twice = True
    elif what == "set":
        model[0].named.add("b")
    else:
        monkeypatch.setattr(_Configured, "scale", 3.0)
    _assert_right(model, x, _energy)


def test_a_way_that_a_weight_decides_is_seen_after_a_step():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.g = nn.Linear(6, 6), nn.Parameter(torch.tensor(-1.0))

        def forward(self, x):
            h = torch.tanh(self.a(x)) * self.g
            return F.linear(h, self.a.weight) if self.g > 0 else h

    torch.manual_seed(0)
    model, x = Gated().double(), torch.randn(7, 6).double()
    _assert_right(model, x, _energy)
    with torch.no_grad():
        model.g.fill_(1.0)
    _assert_right(model, x, _energy)


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("bag", [False, True])
def test_sparse_gradients_are_read(bag, n):
    torch.manual_seed(0)
    first = (
        nn.EmbeddingBag(20, 6, mode="sum", sparse=True)
        if bag
        else nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Flatten())
    )
    model = nn.Sequential(first, nn.Linear(6 if bag else 24, 3)).double()
    x = torch.randint(0, 20, (n, 4))
    found = fisher_information(model, x, _energy)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(n):
        value = _energy(model(x[i : i + 1]))[0]
        for name, g in zip(total, torch.autograd.grad(value, model.parameters()), strict=True):
            total[name] += g.to_dense() ** 2 / n
    for name, value in total.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targets": torch.zeros(24, dtype=torch.long)}, ValueError, "24.* for 12 samples"),
        ({"targets": [0] * 12}, TypeError, "targets"),
        ({"loss": "sampled", "targets": torch.zeros(12, dtype=torch.long)}, ValueError, "reads no"),
        ({"likelihood": "gaussian", "targets": torch.zeros(12, 1, 4)}, ValueError, "shape"),
        ({"inputs": {"x": torch.zeros(12, 6)}}, TypeError, "dict"),
        ({"inputs": torch.tensor(1.0)}, ValueError, "number of samples"),
        ({"params": "weight"}, TypeError, "list of names"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, error, message):
    call = {"inputs": torch.randn(12, 6), "loss": "empirical"}
    call["targets"] = torch.zeros(12, dtype=torch.long)
    with pytest.raises(error, match=message):
        fisher_information(nn.Linear(6, 3), **(call | arguments))


def test_a_loss_of_an_output_without_a_gradient_is_zero():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x), x

    torch.manual_seed(0)
    model, x = Two().double(), torch.randn(9, 6).double()
    found = fisher_information(model, x, lambda out: out[1].square().sum(1))
    assert not found["layer.weight"].any()
    assert fisher_information(model, x, lambda out: _energy(out[0]))["layer.weight"].all()
