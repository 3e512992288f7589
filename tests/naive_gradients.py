"""Gradients of one value after another, and means over them: loops that are obviously right."""

import torch


def gradients(model, values):
    """By parameter, the gradients of some scalars, stacked."""
    params = dict(model.named_parameters())
    rows = [
        torch.autograd.grad(value, params.values(), retain_graph=True, allow_unused=True)
        for value in values
    ]
    return {
        name: torch.stack([torch.zeros_like(p) if g is None else g.to_dense() for g in of])
        for (name, p), of in zip(params.items(), zip(*rows, strict=True), strict=True)
    }


def mean_squares(model, values):
    """By parameter, the mean of the squared gradients of some scalars."""
    return {name: g.square().mean(0) for name, g in gradients(model, values).items()}


def assert_close(found, wanted, rtol=1e-9, atol=1e-14):
    """Values by name are near one another, and there are no others."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


def energy(out):
    """A loss per sample without targets."""
    return out.logsumexp(1)
