"""Fisher information against a plain loop, and the trace that it leaves: none."""

import contextlib

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information


@pytest.mark.parametrize("n", [1, 2, 7])
def test_fisher_of_every_case_equals_the_naive_loop(case, n):
    model, x, targets = case.make(n)
    found = fisher_information(model, x, "empirical", targets=targets, likelihood=case.likelihood)
    naive = case.naive(model, x, targets)
    assert found.keys() == naive.keys()
    for name, rows in naive.items():
        wanted = rows.square().mean(0)
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-14, msg=name)


def test_fisher_of_a_large_batch_in_float32_equals_the_naive_loop(case):
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


def test_the_zoo_has_at_least_sixty_networks():
    assert len(zoo.NETWORKS) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_fisher_of_the_zoo_equals_a_plain_loop_and_leaves_everything_as_it_was(name):
    network = zoo.NETWORKS[name]
    model, x = network.make(3)
    targets = torch.tensor([0, 1, 2])
    wanted = network.naive(x, targets)
    given, state = x.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    found = fisher_information(model, x, network.loss, targets=targets)
    assert found.keys() == wanted.keys()
    largest = max(float(torch.linalg.vector_norm(value)) for value in wanted.values())
    for key, value in wanted.items():
        assert not found[key].is_complex()
        error = float(torch.linalg.vector_norm(found[key] - value))
        # Gradients that are 0 but for rounding (the bias of a key) are rounding here too.
        assert error <= 1e-9 * float(torch.linalg.vector_norm(value)) + 1e-24 * largest, key
    assert torch.equal(x, given)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    assert all(p.grad is None for p in model.parameters())


def test_fisher_under_autocast_is_summed_in_float32(named_case):
    model, x, targets = named_case("residual").make(33)
    wanted = fisher_information(model, x, "empirical", targets=targets)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = fisher_information(model, x.float(), "empirical", targets=targets)
    for key, value in found.items():
        assert value.dtype == torch.float32
        error = torch.linalg.vector_norm(value - wanted[key])
        assert error <= 0.1 * torch.linalg.vector_norm(wanted[key])


def test_fisher_is_not_the_square_of_the_batch_mean(named_case):
    model, x, targets = named_case("mlp").make(64)
    ours = fisher_information(model, x, "empirical", targets=targets)
    model.eval()
    F.cross_entropy(model(x), targets).backward()
    batch = sum((p.grad**2).sum() for p in model.parameters())
    assert sum(v.sum() for v in ours.values()) > 5 * batch


def test_sampled_fisher_of_a_linear_gaussian_model_is_the_second_moment_of_its_input():
    # out = w x with unit noise: d log p / dw = noise * x, so F = E[x^2] for many samples.
    model = nn.Linear(1, 1, bias=False).double()
    x = 2 * torch.randn(20_000, 1, dtype=torch.float64)
    found = fisher_information(model, x, likelihood="gaussian")["weight"]
    assert abs(float(found) / float(x.square().mean()) - 1) < 0.1


def test_mode_hooks_parameters_and_gradients_come_back_after_an_exception(named_case):
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
    assert all(module.training for module in model.modules())


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


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "inside no_grad enabled again": lambda: _both(torch.no_grad(), torch.enable_grad()),
    "anomaly detection": torch.autograd.detect_anomaly,
    "saved tensors on the processor": torch.autograd.graph.save_on_cpu,
    "saved tensors' hooks off": lambda: torch.autograd.graph.disable_saved_tensors_hooks("none"),
}


@contextlib.contextmanager
def _both(one, other):
    with one, other:
        yield


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("mode", MODES)
def test_fisher_information_is_the_same_in_every_grad_mode(mode, n):
    model, x, y = _network()
    x, y = x[:n], y[:n]
    wanted = fisher_information(model, x, "empirical", targets=y)
    fresh = _network()[0]
    with MODES[mode]():
        # Images and labels that were made in that mode, as a data loader would make them.
        found = fisher_information(fresh, x * 1, "empirical", targets=y + 0)
        enabled = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        again = fisher_information(fresh, x, "empirical", targets=y)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == enabled
    for name, value in wanted.items():
        assert value.any()
        torch.testing.assert_close(found[name], value)
        torch.testing.assert_close(again[name], value)


def test_a_model_made_under_inference_mode_is_refused_with_the_remedy():
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"weight.*inference_mode.*outside"):
        fisher_information(model, torch.zeros(4, 3))


def test_lazy_layers_are_refused_until_they_have_a_shape():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"0\.weight.*run the model once"):
        fisher_information(model, torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss": "exact"}, ValueError, "sampled"),
        ({"targets": None}, ValueError, "targets"),
        ({"likelihood": "poisson"}, ValueError, "categorical"),
        ({"params": ["nope"]}, ValueError, "nope"),
        ({"inputs": torch.zeros(0, 6)}, ValueError, "number of samples"),
        ({"model": nn.Linear(6, 3).requires_grad_(False)}, ValueError, "no parameter"),
        ({"targets": torch.zeros(24, dtype=torch.long)}, ValueError, "24.* for 12 samples"),
        ({"targets": [0] * 12}, TypeError, "targets"),
        ({"loss": "sampled", "targets": torch.zeros(12, dtype=torch.long)}, ValueError, "reads no"),
        ({"likelihood": "gaussian", "targets": torch.zeros(12, 1, 4)}, ValueError, "shape"),
        ({"inputs": {"x": torch.zeros(12, 6)}}, TypeError, "dict"),
        ({"inputs": [torch.zeros(12, 6), [0] * 12]}, TypeError, "tuple of tensors, got list"),
        ({"inputs": torch.tensor(1.0)}, ValueError, "number of samples"),
        ({"params": "weight"}, TypeError, "list of names"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, error, message):
    call = {"model": nn.Linear(6, 3), "inputs": torch.randn(12, 6), "loss": "empirical"}
    call["targets"] = torch.zeros(12, dtype=torch.long)
    with pytest.raises(error, match=message):
        fisher_information(**(call | arguments))
