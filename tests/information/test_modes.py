"""Whatever grad mode the caller is in, and whatever hooks and gradients there are."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information, relative_fisher


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


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_relative_fisher_is_the_same_in_every_grad_mode(mode):
    model, x, y = _network()
    losses = (
        lambda out, y: F.cross_entropy(out, y, reduction="none"),
        lambda out, y: out.square().sum(1),
    )
    wanted = relative_fisher(model, x, losses, targets=(y, y))
    with MODES[mode]():
        found = relative_fisher(model, x + 0, losses, targets=(y + 0, y))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_a_model_made_under_inference_mode_is_refused_with_the_remedy():
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"weight.*inference_mode.*outside"):
        fisher_information(model, torch.zeros(4, 3))


def test_lazy_layers_are_refused_until_they_have_a_shape():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"0\.weight.*run the model once"):
        fisher_information(model, torch.zeros(4, 3))


class _Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        inside = torch.tanh(self.i(x))
        return torch.utils.checkpoint.checkpoint(self.o, inside, use_reentrant=True)


@pytest.mark.parametrize("n", [1, 5])
def test_gradients_that_were_there_stay(n):
    torch.manual_seed(0)
    model, x = _Reentrant().double(), torch.randn(n, 6, dtype=torch.float64)
    model.i.weight.grad = torch.ones_like(model.i.weight)
    found = fisher_information(model, x, lambda out: out.square().sum(1))
    assert (model.i.weight.grad == 1).all() and model.o.weight.grad is None
    assert all(value.any() for value in found.values())


def test_an_optimiser_that_steps_in_the_backward_pass_does_not():
    torch.manual_seed(0)
    model, x = _Reentrant().double(), torch.randn(5, 6, dtype=torch.float64)
    stepped = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: stepped.append(p))
    with pytest.raises(RuntimeError, match="checkpoint"):
        fisher_information(model, x, lambda out: out.square().sum(1))
    assert not stepped


@pytest.mark.parametrize("n", [1, 4])
def test_parameters_of_a_reentrant_checkpoint_alone_have_their_gradients(n):
    torch.manual_seed(0)
    model, x = _Reentrant().double(), torch.randn(n, 6, dtype=torch.float64)
    loss = lambda out: out.square().sum(1)  # noqa: E731
    whole = fisher_information(model, x, loss)
    part = fisher_information(model, x, loss, params=["o.weight"])
    torch.testing.assert_close(part["o.weight"], whole["o.weight"])
