"""Time a whole refresh (both Fishers, relative Fisher, gate), its memory, and the penalty."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl import CICNN, dwa_penalty, fisher_information, generalized_fisher
from avalanche_cetl.information import fisher_and_relative
from benchmarks.speed.rivals import Setting
from benchmarks.speed.timing import ratios, spread, timed


def _two_losses() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return classification, and something else that reads the same output."""
    return (
        lambda out, y: F.cross_entropy(out, y, reduction="none"),
        lambda out, y: 0.5 * (out - y).square().sum(1),
    )


def gfi(args: argparse.Namespace) -> dict[str, Any]:
    """Time a whole refresh (both Fishers, relative Fisher, gate) over one Fisher per loss."""
    result: dict[str, Any] = {}
    for name in args.nets.split(","):
        setting = Setting(name, args.device, args.samples)
        goals = torch.randn(len(setting.x), 10, device=args.device)
        losses = _two_losses()

        def fishers(s: Setting = setting, goals: Tensor = goals) -> None:
            for loss, targets in zip(_two_losses(), (s.y, goals), strict=True):
                fisher_information(s.model, s.x, loss, targets=targets)

        def refresh(
            estimator: str, s: Setting = setting, goals: Tensor = goals, losses: Any = losses
        ) -> None:
            found, relative = fisher_and_relative(
                s.model, s.x, losses, targets=(s.y, goals), estimator=estimator
            )
            generalized_fisher(found, relative)

        jobs: dict[str, Callable[[], Any]] = {
            "plain": setting.plain,
            "two fishers": fishers,
            "gaussian": lambda refresh=refresh: refresh("gaussian"),  # type: ignore[misc]
        }
        if args.all_estimators:
            for estimator in ("rank", "histogram"):
                jobs[estimator] = lambda r=refresh, e=estimator: r(e)  # type: ignore[misc]
        rows = ratios(timed(jobs, args.repeats, args.device), "two fishers")
        result[name] = {"samples": len(setting.x), **rows}
        print(name, len(setting.x), "images")
        for job_name, row in rows.items():
            print(f"  {job_name:12} {spread(row)}")
    return result


def penalty(args: argparse.Namespace) -> dict[str, Any]:
    """Time the penalty with its backward pass, against that of Avalanche's EWCPlugin."""
    from types import SimpleNamespace

    import timm
    from avalanche.training.plugins import EWCPlugin
    from avalanche.training.utils import copy_params_dict

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=1000).to(args.device)
    anchors = {name: p.detach() + 0.01 for name, p in model.named_parameters()}
    importance = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    plugin = EWCPlugin(0.5)
    plugin.saved_params[0] = copy_params_dict(model)
    plugin.importances[0] = copy_params_dict(model)
    for name in anchors:
        plugin.saved_params[0][name].data = anchors[name]
        plugin.importances[0][name].data = importance[name]

    def ours() -> float:
        model.zero_grad()
        loss = dwa_penalty(dict(model.named_parameters()), anchors, importance, 1.0)
        loss.backward()
        return float(loss)

    def theirs() -> float:
        model.zero_grad()
        strategy = SimpleNamespace(
            clock=SimpleNamespace(train_exp_counter=1),
            device=args.device,
            model=model,
            loss=torch.zeros((), device=args.device),
        )
        plugin.before_backward(strategy)
        strategy.loss.backward()
        return float(strategy.loss)

    difference = abs(ours() / theirs() - 1)
    # Ten at a time: training calls one of them over and over, so that memory is reused.
    jobs: dict[str, Callable[[], Any]] = {
        "ours": lambda: [ours() for _ in range(10)],
        "EWCPlugin": lambda: [theirs() for _ in range(10)],
    }
    rows = ratios(timed(jobs, args.repeats, args.device), "EWCPlugin")
    row = rows["ours"]
    print(
        f"resnet18 penalty with backward: ours over EWCPlugin's "
        f"{spread(row)}, values differ by {difference:.1e}"
    )
    return {"resnet18": {**row, "relative_difference": difference}}


_MEMORY = """
import resource, sys, torch
from benchmarks.speed.rivals import Setting
from benchmarks.speed.refresh import _two_losses
from avalanche_cetl import relative_fisher
torch.set_num_threads(1)
samples, chunk = int(sys.argv[1]), int(sys.argv[2])
small = Setting("cicnn", "cpu", 4)
goals = torch.randn(samples, 10)
x, y = torch.randn(samples, 3, 32, 32), torch.randint(10, (samples,))
relative_fisher(small.model, x[:4], _two_losses(), targets=(y[:4], goals[:4]), chunk_bytes=2**20)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 1024
relative_fisher(small.model, x, _two_losses(), targets=(y, goals), chunk_bytes=chunk)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak memory that a refresh adds, in a process of its own."""
    result: dict[str, Any] = {}
    weights = 4 * sum(p.numel() for p in CICNN(10, (3, 32, 32)).parameters())
    for samples in (64, 1024):
        for chunk in (128 * 2**20, 512 * 2**20):
            command = [sys.executable, "-c", _MEMORY, str(samples), str(chunk)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            extra = int(done.stdout.split()[-1])
            share = (extra - chunk) / weights
            result[f"{samples} images, chunk {chunk >> 20} MiB"] = {
                "extra_bytes": extra, "beyond_chunk_over_parameters": share
            }  # fmt: skip
            print(f"{samples} images, chunk {chunk >> 20} MiB: {extra >> 20} MiB more, "
                  f"{share:.1f} times the parameters beyond the chunk")  # fmt: skip
    return result
