"""Exact Fisher information, ours and others', and how ours grows."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avalanche_cetl import CICNN, fisher_information
from avalanche_cetl.evaluation import LINE_STYLES, picture
from benchmarks.speed.rivals import Setting, error
from benchmarks.speed.timing import ratios, timed


def fisher(args: argparse.Namespace) -> dict[str, Any]:
    """Time exact Fisher information, ours and others'."""
    result: dict[str, Any] = {}
    for name in args.nets.split(","):
        setting = Setting(name, args.device)
        truth = setting.loop()
        double = Setting(name, args.device, 8)
        double.model.double()
        double.x = double.x.double()
        rows: dict[str, Any] = {"float64_error": error(double.ours(), double.loop())}
        jobs: dict[str, Callable[[], Any]] = {"plain": setting.plain, "ours": setting.ours}
        errors = {"ours": error(setting.ours(), truth)}
        for peer in ("torch_func", "backpack", "opacus", "avalanche_ewc", "loop"):
            job = getattr(setting, peer)
            try:
                errors[peer] = error(job(), truth)
                jobs[peer] = job
            except Exception as problem:  # a peer's limit is a result
                rows[peer] = {"cannot": f"{type(problem).__name__}: {str(problem)[:160]}"}
        start = time.perf_counter()
        Setting(name, args.device).ours()
        first = time.perf_counter() - start
        seconds = timed(jobs, args.repeats, args.device)
        for job_name, ratio in ratios(seconds, "plain").items():
            rows[job_name] = {**ratio, "error": errors.get(job_name)}
        rows["ours"]["first_call_with_planning"] = first / statistics.median(seconds["plain"])
        result[name] = rows
        print(name, f"(float64 error {rows['float64_error']:.1e})")
        for job_name, row in rows.items():
            if isinstance(row, dict) and "median" in row:
                spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
                wrong = "" if row["error"] is None else f", error {row['error']:.1e}"
                print(f"  {job_name:14} {row['median']:6.2f} x  ({spread}){wrong}")
            elif isinstance(row, dict):
                print(f"  {job_name:14} cannot: {row['cannot']}")
    return result


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """Time how the cost grows with samples and with parameters: slopes on log-log axes."""
    sizes = {
        "samples": [(n, 1.0, n) for n in (16, 32, 64, 128, 256)],
        "parameters": [(64, width, 0) for width in (0.25, 0.5, 1.0, 2.0)],
    }
    result: dict[str, Any] = {}
    for axis, settings in sizes.items():
        jobs: dict[str, Callable[[], Any]] = {}
        for samples, width, key in settings:
            torch.manual_seed(0)
            model = CICNN(10, (3, 32, 32), width=width).to(args.device).eval()
            x = torch.randn(samples, 3, 32, 32, device=args.device)
            y = torch.randint(10, (samples,), device=args.device)
            count = key or sum(p.numel() for p in model.parameters())
            jobs[str(count)] = lambda m=model, x=x, y=y: fisher_information(  # type: ignore[misc]
                m, x, "empirical", targets=y
            )
        seconds = timed(jobs, args.repeats, args.device)
        base = ratios(seconds, next(iter(jobs)))
        points = torch.tensor([[float(k), row["median"]] for k, row in base.items()]).log()
        centred = points - points.mean(0)
        slope = float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())
        result[axis] = {"cost_over_the_smallest": base, "exponent": slope}
        print(f"cost grows as {axis} to the power of {slope:.2f}")
    return result


def plot_growth(results: dict[str, Any], path: Path) -> None:
    """Draw the cost over the smallest setting's, on log-log axes, with the fitted slope."""
    figure, both = picture(1, 2, size=(7.6, 3.2))
    for axes, (axis, found) in zip(both, results.items(), strict=True):
        rows = found["cost_over_the_smallest"]
        sizes = [int(size) for size in rows]
        cost = [row["median"] for row in rows.values()]
        low = [row["median"] - row["lowest"] for row in rows.values()]
        high = [row["highest"] - row["median"] for row in rows.values()]
        axes.errorbar(sizes, cost, yerr=[low, high], fmt="o", capsize=2)
        logs = torch.tensor([[float(s), c] for s, c in zip(sizes, cost, strict=True)]).log()
        shift = float((logs[:, 1] - found["exponent"] * logs[:, 0]).mean())
        line = [float(torch.tensor(shift).exp()) * s ** found["exponent"] for s in sizes]
        label = f"slope {found['exponent']:.2f}"
        axes.plot(sizes, line, color="grey", linestyle="-", marker="", label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(axis)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        axes.minorticks_off()
        axes.legend(frameon=False)
    both[0].set_ylabel("cost / that of the smallest")
    figure.savefig(path)


def plot_fisher(results: dict[str, Any], path: Path) -> None:
    """Draw bars of cost over a plain pass, on a log axis."""
    names = list(results)
    peers = ["ours", "torch_func", "backpack", "opacus", "avalanche_ewc", "loop"]
    figure, axes = picture(size=(1.6 + 2.2 * len(names), 3.6))
    hatches = ("", "//", "", "..", "xx", "")
    for i, peer in enumerate(peers):
        for j, name in enumerate(names):
            row = results[name].get(peer, {})
            place = j + (i - 2.5) * 0.14
            if "median" in row:
                bar = axes.bar(place, row["median"], 0.13, color=LINE_STYLES[i].color, bottom=0)
                bar[0].set(hatch=hatches[i], edgecolor="w")
                if j == 0:
                    bar.set_label(peer.replace("_", " "))
                axes.text(
                    place,
                    row["median"],
                    f"{row['median']:.1f}",
                    ha="center",
                    va="bottom",
                    fontsize=7,
                )
            else:
                axes.text(place, 1.05, "cannot", rotation=90, ha="center", va="bottom", fontsize=7)
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("cost / plain forward and backward")
    axes.axhline(1, color="grey", linestyle="-", marker="")
    axes.legend(frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(path)
