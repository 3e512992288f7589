"""Closed forms of layers that several losses read."""

import pytest
import torch
from torch import nn

from avalanche_cetl.information import fisher_and_relative
from avalanche_cetl.information.estimators import ESTIMATORS, LOG_FLOOR
from avalanche_cetl.information.gradients.closed_form import ClosedForm


def _log(values):
    return torch.log(values / values.mean(0) + LOG_FLOOR)


def _correlation(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a * b).mean(0) / (a.square().mean(0) * b.square().mean(0)).sqrt()).abs()


class _TwoCodes(nn.Module):
    """A decoder read from two codes, as CETL's is; with a convolution, and a place for both."""

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


@pytest.mark.parametrize("chunk_bytes", [2**29, 2**15])
@pytest.mark.parametrize("estimator", ["gaussian", "rank"])
def test_a_layer_that_each_loss_reads_by_its_own_call_keeps_its_closed_form(
    estimator, chunk_bytes, monkeypatch
):
    torch.manual_seed(0)
    model = _TwoCodes().double()
    inputs = torch.randn(20, 5).double(), torch.randn(20, 3).double()
    goal = torch.randn(20, 1, 5, 5).double()
    losses = (_image_loss(0), _image_loss(1))
    outer = []
    plain = ClosedForm.outer
    monkeypatch.setattr(
        ClosedForm, "outer", lambda self, k: outer.append(found := plain(self, k)) or found
    )
    fisher, relative = fisher_and_relative(
        model, inputs, losses, targets=(goal, goal), estimator=estimator, chunk_bytes=chunk_bytes
    )
    # The decoder's Linear layer keeps its closed form, although it is called twice.
    assert any(found is not None for found in outer)
    params = dict(model.named_parameters())
    for name, p in params.items():
        values = []
        for loss in losses:
            grads = [
                torch.autograd.grad(
                    loss(model(*(part[i : i + 1] for part in inputs)), goal[i : i + 1]).sum(),
                    p, allow_unused=True,
                )[0] for i in range(20)
            ]  # fmt: skip
            values.append(torch.stack([torch.zeros_like(p) if g is None else g for g in grads]))
        first, second = (v.flatten(1).square() for v in values)
        torch.testing.assert_close(fisher[name], first.mean(0).view_as(p), rtol=1e-10, atol=1e-14)
        if name in ("decoder.1.weight",) and estimator == "gaussian":
            continue  # its floor is on either factor: compared below
        wanted = ESTIMATORS[estimator](first, second).view_as(p)
        torch.testing.assert_close(relative[name], wanted, rtol=1e-7, atol=1e-9)
    if estimator == "gaussian":
        logs = []
        for code, (adapter, part) in enumerate(zip((model.one, model.two), inputs, strict=True)):
            hidden = adapter(part).tanh()
            out = model.decoder[1](hidden)
            image = model.decoder[4](out.tanh().unflatten(1, (2, 3, 3)))
            (g,) = torch.autograd.grad(losses[code]((image, image), goal).sum(), out)
            pair = _log(g.square()).unsqueeze(2) + _log(hidden.detach().square()).unsqueeze(1)
            logs.append(pair.flatten(1))
        wanted = _correlation(*logs).view_as(model.decoder[1].weight)
        torch.testing.assert_close(relative["decoder.1.weight"], wanted, rtol=1e-7, atol=1e-9)
