"""Time Fisher information in a Kronecker basis, and what it costs to hold old experiences."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import CICNN, GFIPlugin, fisher_information
from avalanche_cetl.information import kronecker_basis
from benchmarks.speed.rivals import Setting
from benchmarks.speed.timing import ratios, spread, timed

RANK = 64
EXPERIENCES = (1, 10, 50)
#: Images of a mini-batch, and of a measurement: what is timed is the penalty, not the measurement.
BATCH, MEASURED = 32, 32


def kronecker(args: argparse.Namespace) -> dict[str, Any]:
    """Time a measurement in the basis, and an iteration's penalty by the number of experiences."""
    chosen = [name for name in args.nets.split(",") if name in ("cicnn", "resnet26")]
    return {
        "measurement": {name: _measurement(name, args) for name in chosen},
        "iteration": _iteration(args),
    }


def _measurement(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time Fisher information, plain and in a basis, and the basis with its eigenvectors."""
    setting = Setting(name, args.device, args.samples)
    basis = kronecker_basis(setting.model, setting.x, "empirical", targets=setting.y, rank=RANK)
    known = {"targets": setting.y}
    jobs: dict[str, Callable[[], Any]] = {
        "plain": setting.plain,
        "fisher": setting.ours,
        "fisher in the basis": lambda: fisher_information(
            setting.model, setting.x, "empirical", basis=basis, **known
        ),
        "basis": lambda: kronecker_basis(setting.model, setting.x, "empirical", rank=RANK, **known),
    }
    rows: dict[str, Any] = {"samples": len(setting.x), "rank": RANK}
    try:
        _ekfac(setting)
        jobs["curvlinops' EKFAC"] = partial(_ekfac, setting)
    except Exception as problem:  # a peer's limit is a result
        rows["curvlinops' EKFAC"] = {"cannot": f"{type(problem).__name__}: {str(problem)[:160]}"}
    found = ratios(timed(jobs, args.repeats, args.device), "plain")
    print(name, len(setting.x), "images")
    for job, row in found.items():
        print(f"  {job:20} {spread(row)}", flush=True)
    return rows | found


def _ekfac(setting: Setting) -> Any:
    """Make curvlinops' operator: its factors, all eigenvectors, and the corrected eigenvalues."""
    import curvlinops

    operator = curvlinops.EKFACLinearOperator(
        setting.model,
        nn.CrossEntropyLoss(),
        list(setting.model.parameters()),
        [(setting.x, setting.y)],
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    return operator @ torch.ones(operator.shape[1])


def _iteration(args: argparse.Namespace) -> dict[str, Any]:
    """Time what the plugins add to an iteration after 1, 10 and 50 experiences."""
    from avalanche.training.plugins import EWCPlugin
    from avalanche.training.utils import ParamData

    torch.manual_seed(0)
    model = CICNN(10, (3, 32, 32)).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x = torch.randn(BATCH, 3, 32, 32, device=args.device)
    y = torch.randint(10, (BATCH,), device=args.device)

    def plain() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()

    makers: dict[str, Callable[[], Any]] = {
        f"{basis}, {penalty}, {mode}": partial(
            GFIPlugin, 1e-6, mode, 0.95 if mode == "online" else None, basis=basis,
            penalty=penalty, rank=RANK, threshold=0, probability=1,
        )
        for basis in ("diagonal", "kronecker")
        for penalty in ("proximal", "loss")
        for mode in ("separate", "online")
    }  # fmt: skip
    result: dict[str, Any] = {"network bytes": sum(p.nbytes for p in model.parameters())}
    plugins: dict[str, Any] = {name: make() for name, make in makers.items()}
    theirs, done = EWCPlugin(1e-6), 0
    for count in EXPERIENCES:
        for now in range(done, count):
            images = torch.randn(MEASURED, 3, 32, 32, device=args.device)
            ends = {basis: _measured(basis, model, images) for basis in ("diagonal", "kronecker")}
            for plugin in plugins.values():
                plugin.store.add(now, *ends[plugin.settings.basis], ())
            named = list(model.named_parameters())
            theirs.importances[now] = {
                n: ParamData(n, init_tensor=torch.ones_like(p)) for n, p in named
            }
            theirs.saved_params[now] = {
                n: ParamData(n, init_tensor=p.detach() + 0.01) for n, p in named
            }
        done = count
        jobs: dict[str, Callable[[], Any]] = {"plain": plain}
        for name, plugin in plugins.items():
            params = dict(model.named_parameters())
            plugin.store.grow(params)
            plugin.store.hold(params, {}, torch.Generator())
            jobs[name] = partial(_pay, plugin, _strategy(model, optimizer, count))
        jobs["EWCPlugin"] = partial(_pay, theirs, _strategy(model, optimizer, count))
        seconds = timed(jobs, args.repeats, args.device)
        rows: dict[str, Any] = ratios(seconds, "plain")
        rows["plain"]["seconds"] = statistics.median(seconds["plain"])
        for name, plugin in plugins.items():
            rows[name]["bytes"] = _held_bytes(plugin)
        result[f"{count} experiences"] = rows
        print(f"after {count} experiences, over a forward and backward pass of {BATCH} images")
        for name, row in rows.items():
            print(f"  {name:32} {spread(row)}", flush=True)
    return result


def _measured(kind: str, model: nn.Module, images: Tensor) -> tuple[Any, Any, Any]:
    """Measure an experience of random images: its importance, its basis, and weights beside."""
    labels = torch.randint(10, (len(images),), device=images.device)
    basis = None
    if kind == "kronecker":
        basis = kronecker_basis(model, images, "empirical", targets=labels, rank=RANK)
    fisher = fisher_information(model, images, "empirical", targets=labels, basis=basis)
    return fisher, basis, {name: p.detach() + 0.01 for name, p in model.named_parameters()}


def _strategy(model: nn.Module, optimizer: torch.optim.Optimizer, now: int) -> Any:
    clock = SimpleNamespace(train_exp_counter=now, train_exp_epochs=0)
    device = next(model.parameters()).device
    return SimpleNamespace(clock=clock, model=model, optimizer=optimizer, device=device, loss=None)


def _pay(plugin: Any, strategy: Any) -> None:
    """Do all that a plugin does in an iteration: penalty, its backward pass, and step."""
    strategy.optimizer.zero_grad()
    strategy.loss = torch.zeros((), device=strategy.device)
    plugin.before_backward(strategy)
    if strategy.loss.requires_grad:
        strategy.loss.backward()
    plugin.after_update(strategy)


def _held_bytes(plugin: GFIPlugin) -> int:
    """Return the bytes of all tensors that a plugin holds, each storage once."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif hasattr(value, "state_dict") and not isinstance(value, type):
            visit(value.state_dict())
        elif isinstance(value, dict):
            for part in value.values():
                visit(part)
        elif hasattr(value, "__dict__"):
            visit(vars(value))

    visit(plugin.store)
    return sum(seen.values())
