"""An optimiser's settings and moments, by the names of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.checkpoints.errors import CheckpointError

#: Moments that torch's optimisers keep element by element: of the parameter's shape, or scalars.
_ELEMENTWISE = frozenset(
    ("acc_delta", "ax", "eta", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq",
     "momentum_buffer", "mu", "prev", "square_avg", "step_size", "sum", "variance")
)  # fmt: skip


def optimizer_state(optimizer: Optimizer | None, names: Mapping[int, str]) -> Any:
    """Return settings and moments; None without optimiser.

    :param optimizer: whose state it is.
    :param names: of parameters, by ``id``; moments of others are left out. Groups name those that
        can learn.
    """
    if optimizer is None:
        return None
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": _learning(group, names)}
        for group in optimizer.param_groups
    ]
    moments = {
        names[id(p)]: dict(values) for p, values in optimizer.state.items() if id(p) in names
    }
    shared = {key: value for key, value in optimizer.state.items() if isinstance(key, str)}
    return {
        "type": type(optimizer).__qualname__,
        "groups": groups,
        "moments": moments,
        "shared": shared,
    }


def set_optimizer_state(
    optimizer: Optimizer, state: Any, params: Mapping[str, nn.Parameter], names: Mapping[int, str]
) -> None:
    """Put settings and moments back.

    A setting that the optimiser makes when it first steps, and a new one does not have yet, is
    taken from the checkpoint. So is the order of the parameters within a group.

    :raises CheckpointError: when the optimiser is of another class, or covers other parameters.
    """
    if state["type"] != type(optimizer).__qualname__:
        raise CheckpointError(
            f"the optimizer is {type(optimizer).__qualname__}, in the checkpoint "
            f"{str(state['type'])[:60]}."
        )
    groups = state["groups"]
    mine = [sorted(_learning(group, names)) for group in optimizer.param_groups]
    if [sorted(group["params"]) for group in groups] != mine:
        raise CheckpointError(
            "the optimizer covers other parameters, or in other groups, than in the checkpoint."
        )
    for own, group in zip(optimizer.param_groups, groups, strict=True):
        own.update({k: _setting(k, v, own) for k, v in group.items() if k != "params"})
        places = iter([params[name] for name in group["params"]])
        learning = {id(params[name]) for name in group["params"]}
        own["params"] = [next(places) if id(p) in learning else p for p in own["params"]]
    others = {p: values for p, values in optimizer.state.items() if id(p) not in names}
    optimizer.state.clear()
    optimizer.state.update(others)
    optimizer.state.update(state.get("shared", {}))
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, moments in state["moments"].items():
        parameter = params[name]
        group = where[id(parameter)]
        on_device = bool(group.get("capturable") or group.get("fused"))
        optimizer.state[parameter] = {
            key: _placed(key, value, parameter, on_device) for key, value in moments.items()
        }


def _learning(group: Mapping[str, Any], names: Mapping[int, str]) -> list[str]:
    """Return the names of a group's parameters that can learn."""
    return [names[id(p)] for p in group["params"] if p.requires_grad and id(p) in names]


def _setting(key: str, value: Any, group: dict[str, Any]) -> Any:
    """A setting of a group: one of its kind, or one that the group does not have yet."""
    like = group["lr"] if key == "initial_lr" else group.get(key)
    numbers = isinstance(value, Number) and isinstance(like, Number)
    if not (numbers or value is None or like is None or type(value) is type(like)):
        raise CheckpointError(f"the optimizer has no setting {key[:40]!r} like the checkpoint's.")
    return value


def _placed(key: str, value: Any, parameter: nn.Parameter, on_device: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.to(parameter.device if on_device else "cpu")
    if key in _ELEMENTWISE and value.shape not in (parameter.shape, ()):
        raise CheckpointError("moments in the checkpoint have another shape than their parameter.")
    return value.to(parameter.device)
