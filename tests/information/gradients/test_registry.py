"""Grad samplers that a user registers: used where they are right, refused where they are wrong."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information
from avalanche_cetl.information import fisher_and_relative, register_layer_gradients
from avalanche_cetl.information.gradients import grad_samplers, vmap
from avalanche_cetl.information.gradients.registry import (
    Factors,
    register_layer_factors,
    registered_for,
)


def fresh_layer():
    """A layer of one's own; a new class for every test, since forms are never removed."""

    class Scale(nn.Module):
        def __init__(self, size=4):
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(size))
            self.shift = nn.Parameter(torch.randn(size))

        def forward(self, x):
            return x.sin() * self.gamma + self.shift

    return Scale


def network(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), layer(), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(9, 5, dtype=torch.float64)


@pytest.fixture
def by_torch_func(monkeypatch):
    """The layers that torch.func runs, the slower way."""
    ran, run = [], vmap.call_gradients

    def counted(module, *args):
        ran.append(type(module).__name__)
        return run(module, *args)

    monkeypatch.setattr(vmap, "call_gradients", counted)
    return ran


def test_a_layer_of_ones_own_has_the_fisher_information_of_the_naive_loop(
    by_torch_func, caplog, assert_exact
):
    layer, calls = fresh_layer(), []

    @register_layer_gradients(layer, parameter="gamma")
    def gamma(module, inputs, gradient):
        calls.append(len(gradient))
        return inputs[0].sin() * gradient

    @register_layer_gradients(layer, parameter="shift")
    def shift(module, inputs, gradient):
        return gradient  # not a copy: what is measured must not write into it

    assert_exact(*network(layer))
    assert 9 in calls and not by_torch_func  # in one go over the batch
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_parameter_without_a_form_takes_the_way_it_took(by_torch_func, assert_exact):
    layer = fresh_layer()
    register_layer_gradients(layer, parameter="shift")(lambda module, inputs, gradient: gradient)
    assert_exact(*network(layer))
    assert by_torch_func


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (lambda module, inputs, gradient: inputs[0] * gradient, "other gradients than autograd"),
        (lambda module, inputs, gradient: gradient.sum(1), "gave (2,), not (n, 4) with n = 2"),
        (lambda module, inputs, gradient: gradient.sum(0), "gave (4,), not (n, 4) with n = 2"),
        (lambda module, inputs, gradient: None, "returned None: is the return missing?"),
        (lambda module, inputs, gradient: 1.0, "returned 1.0, not (n, 4)"),
        (lambda module, inputs: None, "TypeError"),
    ],
    ids=["wrong values", "too few", "summed", "nothing", "no tensor", "wrong arguments"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_form_is_refused_by_name(rule, why, dtype, by_torch_func, caplog, assert_exact):
    layer = fresh_layer()
    rule.__qualname__ = "my_rule"
    register_layer_gradients(layer, parameter="gamma")(rule)
    model, x = network(layer)
    for _ in range(2):
        fisher_information(model.to(dtype), x.to(dtype), lambda out: out.logsumexp(1))
    (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert message.startswith("my_rule, the closed form of Scale.gamma, is not used for 1.gamma")
    assert why in message
    assert by_torch_func
    assert_exact(model.double(), x)


@pytest.mark.parametrize(("parameter", "told"), [("gama", True), ("gamma", False)])
def test_a_form_of_a_parameter_that_no_measured_layer_has_is_warned_of(parameter, told, caplog):
    layer = fresh_layer()
    rule = register_layer_gradients(layer, parameter=parameter)
    rule(lambda module, inputs, gradient: inputs[0].sin() * gradient)
    model, x = network(layer)
    for rows in (9, 8):  # another shape of the input: the routes are tried anew
        fisher_information(model, x[:rows], lambda out: out.logsumexp(1))
    messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    wanted = f"for the parameter {parameter!r} of Scale, which has none of that name, but gamma"
    assert [wanted in message for message in messages] == [True] * told


def test_a_form_that_is_wrong_for_later_samples_is_refused_by_the_proof(assert_exact):
    layer = fresh_layer()

    @register_layer_gradients(layer, parameter="gamma")
    def gamma(module, inputs, gradient):
        right = inputs[0].sin() * gradient
        return right if len(right) == 2 else 2 * right

    register_layer_gradients(layer, parameter="shift")(lambda module, inputs, gradient: gradient)
    assert_exact(*network(layer))


def test_a_form_registered_again_replaces_the_first_at_once(by_torch_func, assert_exact):
    layer = fresh_layer()
    used = []
    register_layer_gradients(layer, parameter="shift")(lambda module, inputs, gradient: gradient)
    model, x = network(layer)
    assert_exact(model, x)
    assert by_torch_func
    by_torch_func.clear()

    def gamma(module, inputs, gradient):
        used.append(1)
        return inputs[0].sin() * gradient

    assert register_layer_gradients(layer, parameter="gamma")(gamma) is gamma
    assert_exact(model, x)  # routes that were kept are chosen anew
    assert used and not by_torch_func
    register_layer_gradients(layer, parameter="gamma")(lambda m, i, g: i[0].sin() * g)
    used.clear()
    assert_exact(model, x)
    assert not used and not by_torch_func


def test_a_derived_layer_has_the_form_of_its_nearest_base(assert_exact):
    class Half(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight / 2, self.bias)

    class Derived(Half):
        pass

    used = []

    @register_layer_factors(Half, parameter="weight")
    def half(module, inputs, gradient):
        used.append(type(module))
        return Factors(gradient.unsqueeze(2) / 2, inputs[0].unsqueeze(1), lambda t: t)

    torch.manual_seed(0)
    model = nn.Sequential(Half(5, 4), nn.Tanh(), Derived(4, 3)).double()
    assert_exact(model, torch.randn(9, 5).double())
    assert set(used) == {Half, Derived}
    assert registered_for(Derived, "bias").function is grad_samplers.linear_bias
    assert registered_for(nn.Linear, "weight").function is grad_samplers.linear


class TwoInputs(nn.Module):
    """Reads a second row of every sample by keyword, and a table that is the same for all."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x, table, *, other, power=2):
        return x * self.weight * other + table.sum() * self.weight**power


@register_layer_gradients(TwoInputs, parameter="weight")
def two_inputs(layer, inputs, gradient):
    x, table, other, power = inputs
    return gradient * (x * other + table.sum() * power * layer.weight)


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_a_form_reads_all_inputs_of_its_layer_by_row_or_as_they_are(
    chunk_bytes, by_torch_func, assert_exact
):
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.two = nn.Linear(5, 4), TwoInputs()
            self.register_buffer("table", torch.randn(9, 4))  # as many rows as there are samples

        def forward(self, x):
            return self.two(self.first(x), self.table, other=x[:, :4], power=2)

    torch.manual_seed(0)
    model, x = Reading().double(), torch.randn(9, 5).double()
    assert_exact(model, x, chunk_bytes=chunk_bytes)
    assert not by_torch_func


def test_relative_fisher_by_a_form_is_that_of_torch_func():
    found = []
    for registered in (True, False):
        layer = fresh_layer()
        if registered:
            rule = lambda module, inputs, gradient: inputs[0].sin() * gradient  # noqa: E731
            register_layer_gradients(layer, parameter="gamma")(rule)
            rule = lambda module, inputs, gradient: gradient  # noqa: E731
            register_layer_gradients(layer, parameter="shift")(rule)
        model, x = network(layer)
        losses = (lambda out: out.logsumexp(1), lambda out: out.square().sum(1))
        found.append(fisher_and_relative(model, x, losses))
    for one, other in zip(*found, strict=True):
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kinds", [(), ("Linear",), (int,), (nn.Linear(2, 2),)])
def test_forms_of_anything_but_types_of_layers_are_refused(kinds):
    with pytest.raises(TypeError, match="types of layers"):
        register_layer_gradients(*kinds, parameter="weight")


def test_a_forms_parameter_is_a_name():
    with pytest.raises(TypeError, match="parameter's name"):
        register_layer_gradients(nn.Bilinear, parameter=nn.Parameter(torch.ones(2)))
