"""An optimiser's settings and moments, by the names of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.checkpoints.errors import CheckpointError


def optimizer_state(optimizer: Optimizer | None, names: Mapping[int, str]) -> Any:
    """Give settings and moments; None without optimiser.

    :param names: of parameters, by ``id``; moments of others are left out.
    """
    if optimizer is None:
        return None
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [names[id(p)] for p in group["params"] if id(p) in names]}
        for group in optimizer.param_groups
    ]
    moments = {
        names[id(p)]: dict(values) for p, values in optimizer.state.items() if id(p) in names
    }
    return {"type": type(optimizer).__qualname__, "groups": groups, "moments": moments}


def set_optimizer_state(
    optimizer: Optimizer, state: Any, params: Mapping[str, nn.Parameter], names: Mapping[int, str]
) -> None:
    """Put settings and moments back.

    :raises CheckpointError: when the optimiser is of another class, or covers other parameters.
    """
    if state["type"] != type(optimizer).__qualname__:
        raise CheckpointError(
            f"the optimizer is {type(optimizer).__qualname__}, in the checkpoint "
            f"{str(state['type'])[:60]}."
        )
    groups = state["groups"]
    mine = [[names[id(p)] for p in g["params"] if id(p) in names] for g in optimizer.param_groups]
    if [group["params"] for group in groups] != mine:
        raise CheckpointError(
            "the optimizer covers other parameters, or in other groups, than in the checkpoint."
        )
    for own, group in zip(optimizer.param_groups, groups, strict=True):
        own.update({k: _setting(k, v, own) for k, v in group.items() if k != "params"})
    kept = {p: values for p, values in optimizer.state.items() if id(p) not in names}
    optimizer.state.clear()
    optimizer.state.update(kept)
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, moments in state["moments"].items():
        parameter = params[name]
        group = where[id(parameter)]
        on_device = bool(group.get("capturable") or group.get("fused"))
        optimizer.state[parameter] = {
            key: _placed(key, value, parameter, on_device) for key, value in moments.items()
        }


def _setting(key: str, value: Any, group: dict[str, Any]) -> Any:
    """A setting of a group; a scheduler's start is the one that may be new."""
    like = group["lr"] if key == "initial_lr" else group.get(key)
    known = key in group or key == "initial_lr"
    numbers = isinstance(value, Number) and isinstance(like, Number)
    if not known or not (numbers or value is None or like is None or type(value) is type(like)):
        raise CheckpointError(f"the optimizer has no setting {key[:40]!r} like the checkpoint's.")
    return value


def _placed(key: str, value: Any, parameter: nn.Parameter, on_device: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.to(parameter.device if on_device else "cpu")
    if value.shape not in (parameter.shape, ()):
        raise CheckpointError("moments in the checkpoint have another shape than their parameter.")
    return value.to(parameter.device)
