"""The parts that every strategy has: network, optimisers, evaluator, random states.

A network is never made from the file: the weights go into the strategy's network or into a copy
of it. Heads that grow with the classes (Avalanche's ``IncrementalClassifier`` and
``MultiHeadClassifier``, and ``RidgeHead``) are brought to the size in the checkpoint first.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from numbers import Number
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from avalanche.models import DynamicModule, IncrementalClassifier, MultiHeadClassifier
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.checkpoints.codec import CheckpointError, is_plain
from avalanche_cetl.common.caches import copied
from avalanche_cetl.common.state import own_attributes
from avalanche_cetl.models.ridge import RidgeHead

# ------------------------------------------------------------------ networks


def network_state(network: nn.Module) -> dict[str, Any]:
    """Return weights and buffers, which are frozen, modes, and attributes of dynamic modules.

    ``"frozen"`` names parameters that cannot learn, ``"training"`` has the mode of every module
    in the order of ``modules()``, and ``"dynamic"`` holds the plain attributes of Avalanche's
    dynamic modules, such as the tasks that a multi-head classifier has seen.
    """
    tensors = dict(network.state_dict())
    named = network.named_parameters()
    return {
        "tensors": tensors,
        "frozen": [name for name, p in named if name in tensors and not p.requires_grad],
        "training": [module.training for module in network.modules()],
        "dynamic": {name: _attributes(m) for name, m in _dynamic(network).items()},
    }


def load_network_state(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Put the state of a network back, which has tensors of the same names and shapes.

    Entries other than ``"tensors"`` may be missing: what they would set then stays as it is.
    """
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state["tensors"][name])
    if "frozen" in state:
        for name, parameter in network.named_parameters():
            if name in own:
                parameter.requires_grad_(name not in state["frozen"])
    dynamic = _dynamic(network)
    for name, attributes in state.get("dynamic", {}).items():
        if attributes.keys() - _attributes(dynamic[name]).keys():
            raise CheckpointError(f"{name[:80]} has other attributes than in the checkpoint.")
        vars(dynamic[name]).update(attributes)
    for module, training in zip(network.modules(), state.get("training", []), strict=False):
        module.training = bool(training)


def copy_with(
    network: nn.Module, state: Mapping[str, Any], experiences: Sequence[Any], where: str
) -> nn.Module:
    """Return a copy of a network with another state.

    :param network: that is copied.
    :param state: of the copy, as :func:`network_state` returns it.
    :param experiences: see :func:`grow`.
    :param where: the name of the copy, for messages.
    :raises CheckpointError: when the state is another network's.
    """
    made = copied(network)
    grow(made, state["tensors"], experiences)
    if other := mismatches(made, state["tensors"]):
        raise CheckpointError(
            f"{where} is a copy of another network than the strategy's ({other[0]})."
        )
    load_network_state(made, state)
    return made


def mismatches(network: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    """Return what differs in name, shape or type between a network and saved tensors."""
    own = network.state_dict()
    return [
        *(f"{name} is not in the checkpoint" for name in sorted(own.keys() - saved.keys())),
        *(f"{name[:80]} is not in the model" for name in sorted(saved.keys() - own.keys())),
        *(
            f"{name} is {tuple(own[name].shape)}, in the checkpoint {tuple(saved[name].shape)}"
            for name in sorted(own.keys() & saved.keys())
            if own[name].shape != saved[name].shape or own[name].dtype != saved[name].dtype
        ),
    ]


def check_tensors(network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Raise a :class:`CheckpointError` where a network has other tensors than were saved."""
    other, remedy = mismatches(network, saved), ""
    if other and may_grow_into(network, saved):
        remedy = (
            " Where it grows in training, give the data: load_checkpoint(strategy, path, "
            "experiences=benchmark.train_stream)."
        )
    if other:
        raise CheckpointError(
            f"the checkpoint is of another network ({len(other)} tensors differ): "
            f"{'; '.join(other[:3])}.{remedy}"
        )


def may_grow_into(network: nn.Module, saved: Mapping[str, Tensor]) -> bool:
    """Return whether all that differs lies in modules that may grow in training."""
    own = network.state_dict()
    growing = [f"{n}." if n else "" for n in (*_dynamic(network), *_ridge_heads(network))]
    return all(
        name.startswith(tuple(growing))
        for name in own.keys() | saved.keys()
        if name not in own or name not in saved or own[name].shape != saved[name].shape
    )


def grow(network: nn.Module, saved: Mapping[str, Tensor], experiences: Sequence[Any] = ()) -> None:
    """Bring modules that grow in training to the sizes of saved tensors.

    Avalanche's classifiers and ridge heads need the tensors only. Other dynamic modules adapt to
    one experience after the other, until the network has what was saved.

    :param network: that is changed in place.
    :param saved: tensors of the state, by name.
    :param experiences: those of the run, in order.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()  # adaptation in training mode would note classes as seen
    for name, module in _dynamic(network).items():
        prefix = f"{name}." if name else ""
        if isinstance(module, MultiHeadClassifier):
            for key, tensor in saved.items():
                task = key.removeprefix(f"{prefix}classifiers.").removesuffix(".classifier.weight")
                if task.isdecimal() and key == f"{prefix}classifiers.{task}.classifier.weight":
                    _adapt(module, module.in_features, tensor, int(task))
        elif isinstance(module, IncrementalClassifier) and module._auto_adapt:
            tensor = saved.get(f"{prefix}classifier.weight", torch.empty(0))
            _adapt(module, module.classifier.in_features, tensor, 0)
    for name, head in _ridge_heads(network).items():
        products = saved.get(f"{name}.products" if name else "products", torch.empty(0))
        if products.dim() == 2:
            head.grow(products.shape[1])
    network.train()
    for experience in experiences:
        if not mismatches(network, saved):
            break
        avalanche_model_adaptation(network, experience)
    for module, training in modes:
        module.training = training


def _adapt(module: DynamicModule, width: int, weight: Tensor, task: int) -> None:
    """Adapt a classifier to classes up to the rows of a weight."""
    if weight.dim() == 2 and len(weight) and weight.shape[1] == width:
        classes = [len(weight) - 1]
        module.adaptation(SimpleNamespace(classes_in_this_experience=classes, task_labels=[task]))


def _dynamic(network: nn.Module) -> dict[str, DynamicModule]:
    return {n: m for n, m in network.named_modules() if isinstance(m, DynamicModule)}


def _ridge_heads(network: nn.Module) -> dict[str, RidgeHead]:
    return {n: m for n, m in network.named_modules() if isinstance(m, RidgeHead)}


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: v for name, v in own_attributes(module).items() if is_plain(v)}


# ------------------------------------------------------------------ optimisers


def optimizer_state(optimizer: Optimizer | None, network: nn.Module) -> dict[str, Any] | None:
    """Return settings and moments by the names of the network's parameters.

    Groups name those that can learn. What an optimiser keeps of other parameters is left out. None
    where a strategy has no optimiser.
    """
    if optimizer is None:
        return None
    names, state = _names(network), optimizer.state.items()
    return {
        "type": type(optimizer).__qualname__,
        "groups": [group | {"params": _learning(group, names)} for group in optimizer.param_groups],
        "moments": {names[id(p)]: dict(values) for p, values in state if id(p) in names},
        "shared": {key: value for key, value in state if isinstance(key, str)},
    }


def load_optimizer_state(
    optimizer: Optimizer | None, state: Mapping[str, Any] | None, network: nn.Module
) -> None:
    """Put settings and moments back.

    A setting that the optimiser makes when it first steps, and a new one does not have yet, is
    taken from the checkpoint. So is the order of the parameters within a group.

    :raises CheckpointError: when the optimiser is of another class, or covers other parameters.
    """
    if optimizer is None or state is None:
        if optimizer is not None or state is not None:
            raise CheckpointError("only one of strategy and checkpoint has an optimizer.")
        return
    params, names = dict(network.named_parameters()), _names(network)
    kind, groups = type(optimizer).__qualname__, state["groups"]
    if state["type"] != kind:
        raise CheckpointError(
            f"the optimizer is {kind}, in the checkpoint {str(state['type'])[:60]}."
        )
    mine = [sorted(_learning(group, names)) for group in optimizer.param_groups]
    if [sorted(group["params"]) for group in groups] != mine:
        raise CheckpointError(
            "the optimizer covers other parameters, or in other groups, than in the checkpoint."
        )
    for own, group in zip(optimizer.param_groups, groups, strict=True):
        own.update({k: _setting(k, v, own) for k, v in group.items() if k != "params"})
        ordered = [params[name] for name in group["params"]]
        learning, following = {id(p) for p in ordered}, iter(ordered)
        own["params"] = [next(following) if id(p) in learning else p for p in own["params"]]
    for key in [key for key in optimizer.state if isinstance(key, str) or id(key) in names]:
        del optimizer.state[key]
    optimizer.state.update(state.get("shared", {}))
    of_group = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, moments in state["moments"].items():
        parameter = params[name]
        group = of_group[id(parameter)]
        on_device = group.get("capturable") or group.get("fused")
        # The step count of most optimisers is on the CPU.
        devices = {"step": parameter.device if on_device else "cpu"}
        optimizer.state[parameter] = {
            key: v.to(devices.get(key, parameter.device)) if isinstance(v, Tensor) else v
            for key, v in moments.items()
        }


def _names(network: nn.Module) -> dict[int, str]:
    """Return the names of all parameters that are in a checkpoint: all but those of S."""
    held = network.state_dict()
    return {id(p): name for name, p in network.named_parameters() if name in held}


def _learning(group: Mapping[str, Any], names: Mapping[int, str]) -> list[str]:
    """Return the names of a group's parameters that can learn."""
    return [names[id(p)] for p in group["params"] if p.requires_grad and id(p) in names]


def _setting(key: str, value: Any, group: Mapping[str, Any]) -> Any:
    """Return a setting, where it is of the kind of the group's, or the group has none yet."""
    like = group["lr"] if key == "initial_lr" else group.get(key)
    numbers = isinstance(value, Number) and isinstance(like, Number)
    if not (numbers or value is None or like is None or type(value) is type(like)):
        raise CheckpointError(f"the optimizer has no setting {key[:40]!r} like the checkpoint's.")
    return value


# ------------------------------------------------------------------ evaluator


def evaluator_state(evaluator: EvaluationPlugin, collector: Any) -> dict[str, Any]:
    """Return what metrics hold, what they have emitted, and how far text logs have come.

    :raises CheckpointError: when a metric has state that cannot be kept.
    """
    kept_logs = [_log_of(logger) for logger in evaluator.loggers]
    for log in kept_logs:
        if log is not None:
            log.flush()
    return {
        "metrics": [
            {"type": type(metric).__qualname__, "state": collector.collect(metric, str(metric))}
            for metric in evaluator.metrics
        ],
        "all": {
            name: (list(xs), [value if is_plain(value) else None for value in values])
            for name, (xs, values) in evaluator.all_metric_results.items()
        },
        "last": {n: value for n, value in evaluator.last_metric_results.items() if is_plain(value)},
        "active": evaluator.active,
        "logs": [None if log is None else {"end": int(log.tell())} for log in kept_logs],
    }


def load_evaluator_state(
    evaluator: EvaluationPlugin, state: Mapping[str, Any], restorer: Any
) -> None:
    """Put the state of an evaluator back; cut off what text logs hold of rounds that run again.

    :raises CheckpointError: when the evaluator has other metrics.
    """
    mine = [type(metric).__qualname__ for metric in evaluator.metrics]
    its = [kept["type"] for kept in state["metrics"]]
    if mine != its:
        raise CheckpointError(f"the evaluator has the metrics {mine}, in the checkpoint {its}.")
    for metric, kept in zip(evaluator.metrics, state["metrics"], strict=True):
        restorer.restore(metric, kept["state"], str(metric))
    evaluator.all_metric_results.clear()
    for name, (xs, values) in state["all"].items():
        evaluator.all_metric_results[str(name)] = (list(xs), list(values))
    evaluator.last_metric_results = dict(state["last"])
    evaluator.active = bool(state["active"])
    for logger, kept in zip(evaluator.loggers, state["logs"], strict=False):
        log, end = _log_of(logger), -1 if kept is None else int(kept["end"])
        if log is not None and 0 <= end < log.seek(0, 2):
            log.seek(end)
            log.truncate()


def _log_of(logger: Any) -> Any:
    """Return the file of a text log, where what it holds can be cut off; else None."""
    file = getattr(logger, "file", None)
    try:
        whole = file not in (None, sys.stdout, sys.stderr) and file.seekable() and file.writable()
    except (AttributeError, ValueError, OSError):
        return None
    return file if whole else None


# ------------------------------------------------------------------ random states


def random_states() -> dict[str, Any]:
    """Return the states of torch's, CUDA's, numpy's and Python's generators, as plain data."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, np.asarray(keys), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def load_random_states(states: Mapping[str, Any]) -> None:
    """Set the states of all generators, but of CUDA devices that this machine does not have.

    :raises CheckpointError: when they are no such states.
    """
    try:
        torch.set_rng_state(states["torch"])
        if torch.cuda.is_available():
            for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, device)
        np.random.set_state(states["numpy"])
        random.setstate(states["python"])
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError, IndexError) as why:
        raise CheckpointError(f"the checkpoint's random states are not in order: {why}") from why
