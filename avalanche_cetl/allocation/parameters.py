"""A network's parameters, under names that stay, and in sizes that may grow.

Parameters that require no gradient when a task ends are not measured; those measured before are
held whenever they train. Parameters that grow between tasks (heads) keep the importance of their
old part; new ones are free. Networks, and parts of them, may be wrapped (torch.compile,
DataParallel, DistributedDataParallel) between tasks: parameters have their names without wrappers,
and measurements read the layers themselves. A network that has lost a parameter that is held, as
one that was pruned or reparametrised meanwhile has, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis

#: Modules that only run another one, and the name of it in them, which stands in the names of all
#: its parameters. They are told by their classes: a network may have a ``module`` of its own.
WRAPPERS: dict[type[nn.Module], str] = {
    DistributedDataParallel: "module",
    nn.DataParallel: "module",
    OptimizedModule: "_orig_mod",  # of torch.compile
}


def bare(model: nn.Module) -> nn.Module:
    """Return the module itself, which has its own parameter names, where it is wrapped."""
    while (name := _wrapped(model)) is not None:
        model = model.get_submodule(name)
    return model


def _wrapped(module: nn.Module) -> str | None:
    """Return the name of what a wrapper wraps; None for other modules."""
    for kind, name in WRAPPERS.items():
        if name in module._modules and isinstance(module, kind):
            return name
    return None


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters by the names that they have without any wrapper.

    So a network that is compiled, or given to several devices, between two experiences, or a part
    of it, is held under the names that it had before.
    """
    model = bare(model)
    found: dict[str, Tensor] = dict(model.named_parameters())
    wrappers = [
        (f"{name}.{inner}.", f"{name}.")
        for name, module in model.named_modules()
        if (inner := _wrapped(module)) is not None
    ]
    for inside, outside in reversed(wrappers):  # the innermost first: their names are the longest
        found = {
            outside + name.removeprefix(inside) if name.startswith(inside) else name: parameter
            for name, parameter in found.items()
        }
    return found


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require a gradient, as :func:`named_parameters` does."""
    return {name: p for name, p in named_parameters(model).items() if p.requires_grad}


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Take the wrappers off a network and off its parts, for a while.

    A measurement reads the layers themselves, under their own names: compiled code has no hooks,
    and a wrapper for several devices runs copies.

    :return: the network, whose parameters have the names of :func:`named_parameters`.
    """
    model = bare(model)
    taken: list[tuple[dict[str, Any], str, nn.Module]] = [
        (owner._modules, name, child)
        for owner in model.modules()
        for name, child in owner._modules.items()
        if child is not None and _wrapped(child) is not None
    ]
    try:
        for children, name, child in taken:
            children[name] = bare(child)
        yield model
    finally:
        for children, name, child in taken:
            children[name] = child


def widened(value: Tensor) -> Tensor:
    """Return a tensor of half precision in single precision, any other as it is.

    Penalties count differences from anchors, which half precision rounds away.
    """
    return value.to(torch.promote_types(value.dtype, torch.float32))


def anchors_of(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the weights as they are now, at least in single precision."""
    return {name: widened(p.detach()).clone() for name, p in params.items()}


def basis_of(state: Mapping[str, Any]) -> KroneckerBasis:
    """Return the basis of a state, as its ``state_dict()`` returned it."""
    basis = KroneckerBasis({})
    basis.load_state_dict(state)
    return basis


def check_held(names: Set[str], params: Mapping[str, Tensor], holder: str) -> None:
    """Raise ValueError when a network has lost a parameter that is held.

    :param names: of the parameters that are held.
    :param params: the network's, of :func:`named_parameters`.
    :param holder: who holds them, for the message.
    """
    if names <= params.keys():
        return
    lost = sorted(names - params.keys())
    place = lost[0].rpartition(".")[0]
    there = [name for name in params if name.startswith(f"{place}.")] if place else []
    found = ", ".join(map(repr, there[:4] or [min(params, default="nothing")]))
    raise ValueError(
        f"{holder} holds {lost[0]!r} ({len(lost)} of {len(names)} such parameters), but the "
        f"network has no parameter of this name any more, only {found}"
        f"{' and others' if len(there) != len(params) else ''}. Give it the same network, under "
        "the same names, in every experience. Pruning and reparametrisation rename a weight: apply "
        "them before the first experience, or undo them before the next one "
        "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations, remove_weight_norm). "
        f"To let a part of the network go, start with a new {holder}."
    )


def held(model: nn.Module, names: Set[str], holder: str) -> dict[str, Tensor]:
    """Return a network's parameters of these names.

    :raises ValueError: when it has one of them no more; see :func:`check_held`.
    """
    params = named_parameters(model)
    check_held(names, params, holder)
    return {name: params[name] for name in params if name in names}


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network's first parameter."""
    return next(model.parameters()).device


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
    grown[place_of(value.shape)] = value
    return grown


def place_of(shape: torch.Size) -> tuple[slice, ...]:
    """Return where a tensor of a shape lies in one that has grown from it."""
    return tuple(slice(size) for size in shape)
