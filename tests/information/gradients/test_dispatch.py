"""Which routes are chosen, and how long they are kept."""

import logging

import pytest
import torch
from networks import Of
from torch import nn
from torch.nn import functional as F
from zoo_networks import Sign

from avalanche_cetl import fisher_information
from avalanche_cetl.common.state import ModelState
from avalanche_cetl.information.gradients.dispatch import dispatch
from avalanche_cetl.information.gradients.loop import Loop


def _dispatched(model, x):
    params = dict(model.eval().named_parameters())
    return dispatch(Loop(model, [x], params, ModelState(model)), [x], 1)


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
    routes = _dispatched(model, x).routes
    assert {route.kind for route in routes.values()} == {"closed_form"}


def test_other_routes_are_taken_where_they_are_right_and_named(named_case, caplog):
    caplog.set_level(logging.DEBUG, "avalanche_cetl")
    model, x, _ = named_case("class token").make(5)
    routes = _dispatched(model, x).routes
    assert routes["token"].kind == routes["position"].kind == "expanded"
    assert routes["scale.gamma"].kind == "module" and "scale.gamma" in caplog.text
    assert routes["qkv.weight"].kind == "closed_form"
    model, x, _ = named_case("tied by a function").make(5)
    routes = _dispatched(model, x).routes
    assert routes["embedding.weight"].kind == "model"


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
    routes = _dispatched(model, x).routes
    assert {route.kind for route in routes.values()} == {"closed_form"}


def test_memory_of_the_whole_model_route_is_counted(named_case):
    model, x, _ = named_case("tied by a function").make(5)
    assert _dispatched(model, x).model_bytes > 0


def test_routes_that_showed_no_gradient_are_not_kept(named_case):
    torch.manual_seed(0)
    model = Of(
        lambda m, x: (x + m.gate * m.attend(x, x, x, need_weights=False)[0]).sum(1),
        attend=nn.MultiheadAttention(4, 2, batch_first=True),
        gate=nn.Parameter(torch.zeros(4)),
    ).double()
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    y = torch.randint(4, (6,))
    fisher_information(model, x, "empirical", targets=y)
    model.gate.data.fill_(1.0)
    found = fisher_information(model, x, "empirical", targets=y)
    wanted = named_case("tokens").naive(model, x, y)
    for key, rows in wanted.items():
        torch.testing.assert_close(found[key], rows.square().mean(0), rtol=1e-10, atol=1e-14)


def test_routes_of_a_changed_module_are_chosen_anew(named_case):
    model, x, targets = named_case("mlp").make(6)
    fisher_information(model, x, "empirical", targets=targets)
    model[0] = nn.Sequential(nn.Linear(5, 7)).double()
    found = fisher_information(model, x, "empirical", targets=targets)
    wanted = named_case("mlp").naive(model, x, targets)
    torch.testing.assert_close(found["0.0.weight"], wanted["0.0.weight"].square().mean(0))


def test_kept_routes_do_not_keep_models_alive():
    import gc
    import weakref

    model = nn.Linear(3, 2)
    fisher_information(model, torch.randn(4, 3))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))


def test_routes_of_an_unchanged_network_are_chosen_once_and_verified_when_due(counted):
    model, x, y = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        fisher_information(model, x, "empirical", targets=y)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    # In full when they are chosen, and with one sample after each step.
    assert counted == {"chosen": 1, "verified": 5}
    for _ in range(4):
        fisher_information(model, x, "empirical", targets=y)
    assert counted == {"chosen": 1, "verified": 6}
    for _ in range(2):  # the tenth use since they were verified in full
        fisher_information(model, x, "empirical", targets=y)
    assert counted == {"chosen": 1, "verified": 7}


class _Wrapper(nn.Module):
    """A view of a network that is made anew for every measurement, as CETL's are."""

    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, x):
        found = self.model(x)
        return tuple(found if name == "logits" else found.tanh() for name in self.outputs)


def test_a_wrapper_made_anew_takes_the_routes_that_were_kept(counted):
    model, x, y = _network()
    for _ in range(3):
        for outputs in (("logits", "tanh"), ("tanh",)):
            fisher_information(
                _Wrapper(model, outputs), x,
                lambda out, y: F.cross_entropy(out[0], y, reduction="none"), targets=y,
            )  # fmt: skip
    assert counted["chosen"] == 2


class _Slow(nn.Module):
    """Nothing but the loop runs it."""

    def __init__(self):
        super().__init__()
        self.w, self.o = nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 3)

    def forward(self, x):
        return self.o(torch.tanh(x @ Sign.apply(self.w)))


def test_a_slow_model_is_warned_of_once_with_the_reason(caplog):
    caplog.set_level(logging.WARNING, "avalanche_cetl")
    torch.manual_seed(0)
    one, two, x = _Slow(), _Slow(), torch.randn(5, 6)
    for model in (one, one, two):
        fisher_information(model, x)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all("_Slow" in m and "w" in m and "slow" in m and "setup_context" in m for m in messages)
