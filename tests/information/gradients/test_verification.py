"""Routes are tried on two samples, and verified on the batch, which shows what a trial cannot."""

import math

import pytest
import torch
from naive_gradients import energy
from networks import Of
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information, relative_fisher
from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information.gradients.loop import Loop
from avalanche_cetl.information.gradients.routes import Route
from avalanche_cetl.information.gradients.verification import Reference, Trial, projection

LARGE = torch.tensor([3.0, 4.0], dtype=torch.float64)


class _Given:
    """A loop whose losses and gradients are given."""

    def __init__(self, *samples):
        self.samples = samples

    def of(self, row, loss):
        return self.samples[row]


def _reference(strict=True, value=1.0, **gradients):
    return Reference(_Given((torch.tensor(value), gradients)), None, [0], strict)


@pytest.mark.parametrize(
    ("dtype", "error", "same"),
    [
        (torch.float64, 1e-7, True),
        (torch.float64, 1e-5, False),
        (torch.float32, 1e-3, True),
        (torch.float32, 1e-2, False),
        (torch.bfloat16, 0.05, True),
        (torch.bfloat16, 0.4, False),
    ],
)
def test_gradients_agree_up_to_the_rounding_of_their_type(dtype, error, same):
    reference = _reference(w=LARGE.to(dtype))
    distance = reference.distance("w", 0, (LARGE * (1 + error)).to(dtype))
    assert distance == (0 if same else pytest.approx(error, rel=0.05))


@pytest.mark.parametrize(
    ("dtype", "strict", "same"),
    [(torch.float64, True, True), (torch.float32, False, True), (torch.float32, True, False)],
)
def test_a_tiny_gradient_may_be_rounding_but_in_float32_not_in_a_trial(dtype, strict, same):
    tiny = LARGE.to(dtype) * (1e-13 if dtype == torch.float64 else 1e-8)
    reference = _reference(strict, w=LARGE.to(dtype), tiny=tiny)
    assert reference.distance("tiny", 0, -tiny) == (0 if same else 2)


def test_a_gradient_that_the_loop_does_not_reach_is_zero():
    reference = _reference(w=LARGE, unused=None)
    assert reference.distance("unused", 0, torch.zeros(2).double()) == 0
    assert reference.distance("unused", 0, torch.full((2,), 1e-3).double()) == math.inf
    assert reference.unused("unused") and not reference.reaches("unused")
    assert reference.reaches("w") and not reference.unused("w")


def test_losses_are_compared_more_strictly_than_gradients():
    alone = torch.tensor([1.0, 1e-6])
    reference = Reference(_Given(*((value, {}) for value in alone)), None, [0, 1], True)
    assert reference.has_losses(alone * (1 + 1e-4))
    assert reference.has_losses(alone + torch.tensor([0.0, 1e-5]))  # small beside the mean
    assert not reference.has_losses(alone * (1 + 2e-3))


def test_projection_weighs_no_two_outputs_alike_and_none_with_zero():
    outputs = torch.zeros(2, 5000, dtype=torch.float64, requires_grad=True)
    projection(outputs, 2)[0].backward()
    weights = outputs.grad[0].abs().sort().values
    assert weights[0] > 1e-6 and (weights.diff() > 1e-10).all()
    assert not outputs.grad[1].any()


def test_projection_reads_whatever_has_a_row_for_each_sample():
    rows, steps = torch.randn(3, 4), torch.randn(5, 3, 2)  # a recurrent layer's state is (5, N, 2)
    outputs = {
        "rows": rows,
        "state": (steps, torch.tensor(1.0), torch.randn(7)),
        "spectrum": torch.complex(rows, rows),
        "labels": torch.arange(3),
    }
    wanted = (
        projection(rows, 3)
        + projection(steps.transpose(0, 1), 3)
        + projection(torch.stack([rows, rows], 2), 3)
    )
    torch.testing.assert_close(projection(outputs, 3), wanted)


def test_projection_of_outputs_without_rows_is_refused():
    with pytest.raises(ValueError, match="no tensor with a row"):
        projection((torch.randn(4), torch.arange(3)), 3)


class _Own(nn.Linear):
    """A Linear layer with a forward pass of its own."""

    def forward(self, x):
        return super().forward(x).tanh()


def _verdicts(*layers, kind="closed_form"):
    torch.manual_seed(0)
    model, two = nn.Sequential(*layers).double().eval(), [torch.randn(2, 4, dtype=torch.float64)]
    params = dict(model.named_parameters())
    trial = Trial(model, two, Loop(model, two, params, ModelState(model)), losses=1)
    routes = {name: Route(kind, [tuple(name.split("."))]) for name in params}
    return trial.verdicts(routes), trial


@pytest.mark.parametrize("kind", ["closed_form", "module"])
def test_routes_of_torchs_layers_are_right(kind):
    verdicts, trial = _verdicts(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), kind=kind)
    assert all(verdicts.values()) and len(verdicts) == 4
    assert trial.sample_bytes > 0 and not trial.problems


def test_the_closed_form_of_a_layer_with_another_forward_pass_is_wrong():
    verdicts, trial = _verdicts(nn.Linear(4, 3), _Own(3, 2))
    assert verdicts == {"0.weight": True, "0.bias": True, "1.weight": False, "1.bias": False}
    assert trial.problems["1.bias"] == "it gives other gradients than autograd"


def test_no_route_is_right_where_samples_are_mixed():
    verdicts, trial = _verdicts(nn.Linear(4, 3), Of(lambda m, x: x - x.mean(0)), nn.Linear(3, 2))
    assert trial.mixes_samples and not any(verdicts.values())


def test_a_dead_layer_of_torch_is_accepted_unseen_and_ones_own_is_not():
    gate = Of(lambda m, x: 0 * x)
    verdicts, _ = _verdicts(nn.Linear(4, 3), _Own(3, 2), gate, nn.Linear(2, 2))
    assert verdicts["0.weight"] and verdicts["3.bias"] and not verdicts["1.weight"]


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
    assert counted == {"chosen": 1, "verified": 2}
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_routes_that_do_not_hold_are_chosen_again_for_every_estimator(named_case):
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
        assert_exact(model, x)
    assert_exact(model, x, lambda out: (out @ model.proxies.T).logsumexp(1))
    assert_exact(model, x, lambda out: energy(out) + model[0].weight.square().sum())


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_a_loss_that_depends_on_the_number_of_samples_is_that_of_one(chunk_bytes, naive_fisher):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3).double(), torch.randn(9, 6).double()
    found = fisher_information(model, x, lambda o: energy(o) / len(o), chunk_bytes=chunk_bytes)
    wanted = naive_fisher(model, x)
    torch.testing.assert_close(found["weight"], wanted["weight"])


def _rare(m, x):
    """Some samples read the weight a second time, the first two do not."""
    h = torch.tanh(m.a(x))
    return h + (x[:, :1] > 0) * F.linear(h, m.a.weight)


def test_samples_behind_the_first_two_are_looked_at_too(assert_exact):
    torch.manual_seed(0)
    x = torch.randn(12, 6).double()
    x[:2, 0], x[2:, 0] = -1.0, x[2:, 0].abs()
    assert_exact(Of(_rare, a=nn.Linear(6, 6)).double(), x)


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


def _twice(m, x):
    """Reads its layer's weight outside of the layer too, for some images alone."""
    z, also = m.layer(x), x[:, 0] > 0
    if also.any():
        z = z + also[:, None] * F.linear(z.tanh(), m.layer.weight)
    return m.head(z.tanh())


def test_where_one_of_three_samples_differs_more_are_looked_at():
    torch.manual_seed(0)
    model = Of(_twice, layer=nn.Linear(6, 6), head=nn.Linear(6, 3))
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    x[:, 0] = -x[:, 0].abs()
    x[[21, *range(4, 64, 8)], 0] *= -1  # of the samples 0, 1, 21 and 42 one alone
    found = fisher_information(model, x, "empirical", targets=y)["layer.weight"]
    model = model.double()
    wanted = torch.zeros(6, 6, dtype=torch.float64)
    for one, label in zip(x.double().split(1), y.split(1), strict=True):
        loss = F.cross_entropy(model(one), label)
        wanted += torch.autograd.grad(loss, model.layer.weight)[0].square() / 64
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-7)


class _MoreInABatch(torch.autograd.Function):
    """The identity, whose gradient is a quarter more where there are more than two samples."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1.25 if len(gradient) > 2 else 1)


def test_the_warning_says_by_how_much_a_gradient_differs(caplog):
    torch.manual_seed(0)
    first, head = nn.Linear(6, 4), nn.Linear(4, 3)
    model = Of(lambda m, x: m.head(_MoreInABatch.apply(m.first(x))), first=first, head=head)
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    fisher_information(model, x, "empirical", targets=y)
    (text,) = [record.getMessage() for record in caplog.records if "slow" in record.getMessage()]
    assert "another gradient of first.weight than autograd's, by 0.25 of its norm" in text
