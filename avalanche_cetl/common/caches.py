"""What modules keep in evaluation mode and drop in training mode: values made of their weights.

Attention with biases by position (LeViT, TinyViT, EfficientViT) gathers its biases once: at the
first pass in evaluation mode (timm and transformers, in a dict), or when that mode begins (the
authors' own code, in an attribute). Its ``train()`` drops them. Such a value may have no gradient,
and it is stale as soon as the weights change without that call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from avalanche_cetl.common.state import own_attributes

Module = TypeVar("Module", bound=nn.Module)
_GONE = object()


@contextmanager
def caches_dropped(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Let a model be without its caches for a while; what it had comes back at the end.

    :return: the modules that can be read without a cache in training mode only.
    """
    eager, before = [], []
    for module in model.modules():
        dropped, made = _caches(module)
        eager += [module] if made else []
        for name, value in dropped.items():
            before.append((vars(module), name, vars(module)[name]))
            if value is _GONE:
                del vars(module)[name]
            else:
                vars(module)[name] = value
    try:
        yield eager
    finally:
        for attributes, name, value in before:
            attributes[name] = value


def renew_caches(model: nn.Module) -> None:
    """Let modules that are in evaluation mode drop what they keep, or make it anew.

    For copies whose weights follow another network: it calls the modules' own ``train()``.
    """
    for module in model.modules():
        dropped, made = _caches(module)
        if not module.training and (dropped or made):
            module.train(True)
            module.train(False)


def copied(model: Module) -> Module:
    """Return a deep copy; tensors that modules keep lose their graph, which cannot be copied.

    Such a tensor is the weight of a layer under ``torch.nn.utils.weight_norm``, made anew at every
    pass, or a cache that a pass with gradients has filled.
    """
    kept = [
        t
        for m in model.modules()
        for value in own_attributes(m).values()
        for t in _tensors_in(value)
    ]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in kept if t.grad_fn is not None})


def _caches(module: nn.Module) -> tuple[dict[str, Any], bool]:
    """Return the caches that a module itself has, and whether evaluation mode itself makes one.

    Its own ``train()`` may do more than to drop them (merge weights, freeze layers), so it is
    called on a stand-in: without children, with weights of its own. A module whose ``train()``
    needs its children is taken to keep nothing.

    :return: by attribute what it is in training mode; ``_GONE``: there is none.
    """
    if type(module).train is nn.Module.train or isinstance(module, torch.jit.ScriptModule):
        return {}, False
    try:
        stand_in = _stand_in(module)
        found = []
        for mode in (False, True, False):
            stand_in.train(mode)
            found.append((own_attributes(stand_in), _holders(stand_in)))
    except Exception:
        return {}, False
    _, (values, trained), (_, evaluated) = found
    dropped = {name: values.get(name, _GONE) for name in _holders(module) - trained}
    return dropped, bool(evaluated - trained)


def _stand_in(module: nn.Module) -> nn.Module:
    made = copy.copy(module)
    for name, value in own_attributes(module).items():
        # Its train() may write into what it keeps.
        copies = {id(t): t.detach().clone() for t in _tensors_in(value)}
        vars(made)[name] = copy.deepcopy(value, copies) if copies else copy.copy(value)
    for name in ("_parameters", "_buffers"):
        own = {n: None if t is None else t.detach().clone() for n, t in vars(module)[name].items()}
        vars(made)[name] = own
    made._modules = {}
    return made


def _holders(module: nn.Module) -> set[str]:
    """Return the attributes that hold tensors."""
    return {name for name, value in own_attributes(module).items() if _tensors_in(value)}


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    parts = value if isinstance(value, list | tuple) else [value]
    return [one for one in parts if isinstance(one, Tensor)]
