"""A network's parameters, under names that stay, and in sizes that may grow."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def bare(model: nn.Module) -> nn.Module:
    """Return the model itself, which has its own parameter names, where it is wrapped.

    So a network that is compiled, or given to several devices, between two experiences is held
    under the names that it had before.
    """
    while True:
        if isinstance(model, DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        else:
            return model


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def grown(value: Tensor, like: Tensor) -> Tensor:
    """Return a stored tensor in the shape of its parameter: 0 where the parameter has grown.

    :raises ValueError: when the parameter has shrunk, or has other dimensions.
    """
    if value.shape == like.shape:
        return value
    if value.dim() != like.dim() or any(
        a > b for a, b in zip(value.shape, like.shape, strict=True)
    ):
        raise ValueError(
            f"a parameter of shape {tuple(value.shape)} has become {tuple(like.shape)}: parameters "
            "may grow between experiences, but not shrink or change their dimensions."
        )
    grown = value.new_zeros(like.shape)
    grown[tuple(slice(0, size) for size in value.shape)] = value
    return grown
