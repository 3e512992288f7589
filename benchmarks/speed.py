"""Time the Fisher information against what else there is: `python -m benchmarks.speed`.

    python -m benchmarks.speed fisher [--nets cicnn,resnet26,resnet18,vit] [--repeats 5]
    python -m benchmarks.speed gfi | penalty | growth | memory

Every figure is a ratio within one process: cost over that of a plain forward and backward
pass of the same batch. Rows are timed in turn, several times, so that a slow moment of the
machine hits all of them; median and range are printed, and written with versions and
settings to ``benchmarks/results/speed/``. Whoever is timed is checked first: its values
against a loop over single samples.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import (
    CICNN,
    ResNet26,
    dwa_penalty,
    fisher_information,
    generalized_fisher,
)
from avalanche_cetl.information import fisher_and_relative

FOLDER = Path(__file__).parent / "results" / "speed"
Values = dict[str, Tensor]


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]]:
    """By name: how to build it, the shape of an image, the batch."""
    import timm

    def vit() -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10)

    return {
        "cicnn": (lambda: CICNN(10, (3, 32, 32)), (3, 32, 32), 128),
        "resnet26": (lambda: ResNet26(10, (3, 32, 32)), (3, 32, 32), 128),
        "resnet18": (lambda: timm.create_model("resnet18", num_classes=10), (3, 64, 64), 64),
        "vit": (vit, (3, 64, 64), 64),
    }


class Setting:
    """A network in eval mode, a batch, and its labels."""

    def __init__(self, name: str, device: str, samples: int | None = None):
        build, shape, batch = networks()[name]
        torch.manual_seed(0)
        self.name, self.device = name, device
        self.model = build().to(device).eval()
        self.x = torch.randn(samples or batch, *shape, device=device)
        self.y = torch.randint(10, (len(self.x),), device=device)

    def plain(self) -> None:
        """One ordinary forward and backward pass."""
        self.model.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()

    def ours(self) -> Values:
        """Ours."""
        return fisher_information(self.model, self.x, "empirical", targets=self.y)

    def loop(self) -> Values:
        """One backward pass per sample."""
        params = dict(self.model.named_parameters())
        sums = {name: torch.zeros_like(p) for name, p in params.items()}
        for i in range(len(self.x)):
            loss = F.cross_entropy(self.model(self.x[i : i + 1]), self.y[i : i + 1])
            for name, g in zip(params, torch.autograd.grad(loss, params.values()), strict=True):
                sums[name] += g * g
        return {name: value / len(self.x) for name, value in sums.items()}

    def torch_func(self) -> Values:
        """Run vmap over gradients of single samples."""
        from torch.func import functional_call, grad, vmap

        params = {name: p.detach() for name, p in self.model.named_parameters()}

        def loss(weights: Values, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.model, weights, (x[None],)), y[None])

        rows = vmap(grad(loss), (None, 0, 0))(params, self.x, self.y)
        return {name: value.square().mean(0) for name, value in rows.items()}

    def backpack(self) -> Values:
        """BackPACK's SumGradSquared."""
        from backpack import backpack, extend
        from backpack.extensions import SumGradSquared

        if not hasattr(self, "_extended"):
            build = networks()[self.name][0]
            extended = build().to(self.device).eval()
            extended.load_state_dict(self.model.state_dict())
            self._extended = extend(extended, use_converter=self.name != "cicnn")
            self._criterion = extend(nn.CrossEntropyLoss(reduction="sum"))
        self._extended.zero_grad()
        with backpack(SumGradSquared()):
            self._criterion(self._extended(self.x), self.y).backward()
        params = self._extended.parameters()
        names = dict(self.model.named_parameters())
        return {
            name: p.sum_grad_squared / len(self.x) for name, p in zip(names, params, strict=True)
        }

    def opacus(self) -> Values:
        """The per-sample gradients of opacus, squared."""
        from opacus import GradSampleModule

        if not hasattr(self, "_sampled"):
            build = networks()[self.name][0]
            sampled = build().to(self.device).eval()
            sampled.load_state_dict(self.model.state_dict())
            self._sampled = GradSampleModule(sampled, loss_reduction="sum")
            for module in self._sampled.modules():  # it captures in training mode alone
                module.train(not isinstance(module, nn.Dropout))
        self._sampled.zero_grad()
        F.cross_entropy(self._sampled(self.x), self.y, reduction="sum").backward()
        values = {
            name.removeprefix("_module."): p.grad_sample.square().mean(0)
            for name, p in self._sampled.named_parameters()
        }
        for p in self._sampled.parameters():
            p.grad_sample = None
        return values

    def avalanche_ewc(self) -> Values:
        """Avalanche's EWC one sample at a time, the only batch size at which it is exact."""
        from avalanche.benchmarks.utils import as_classification_dataset
        from avalanche.training.plugins import EWCPlugin
        from torch.utils.data import TensorDataset

        targets = self.y.tolist()
        tensors = TensorDataset(self.x.cpu(), self.y.cpu())
        tensors.targets = targets  # type: ignore[attr-defined]
        data = as_classification_dataset(tensors)
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        found = EWCPlugin(1.0).compute_importances(
            self.model, nn.CrossEntropyLoss(), optimizer, data, self.device, 1
        )
        self.model.eval()
        return {name: value.data for name, value in found.items()}


def error(found: Values, wanted: Values) -> float:
    """Largest relative error over parameters, in the Euclidean norm."""
    worst = 0.0
    for name, value in wanted.items():
        size = torch.linalg.vector_norm(value).item()
        if size > 0:
            worst = max(worst, torch.linalg.vector_norm(found[name] - value).item() / size)
    return worst


def timed(jobs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of every job, taken in turn; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            _wait(device)
            start = time.perf_counter()
            job()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and range over rounds of a job's time over the base's in the same round."""
    result = {}
    for name, times in seconds.items():
        parts = [t / b for t, b in zip(times, seconds[base], strict=True)]
        result[name] = {
            "median": statistics.median(parts), "lowest": min(parts), "highest": max(parts)
        }  # fmt: skip
    return result


def fisher(args: argparse.Namespace) -> dict[str, Any]:
    """Exact Fisher information, ours and others'."""
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


def _two_losses() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Classification, and something else that reads the same output."""
    return (
        lambda out, y: F.cross_entropy(out, y, reduction="none"),
        lambda out, y: 0.5 * (out - y).square().sum(1),
    )


def gfi(args: argparse.Namespace) -> dict[str, Any]:
    """A whole refresh (both Fishers, relative Fisher, gate) over one Fisher per loss."""
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
            spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
            print(f"  {job_name:12} {row['median']:.2f} x ({spread})")
    return result


def penalty(args: argparse.Namespace) -> dict[str, Any]:
    """The penalty with its backward pass, against that of Avalanche's EWCPlugin."""
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
        f"resnet18 penalty with backward: ours over EWCPlugin's {row['median']:.2f} "
        f"({row['lowest']:.2f} to {row['highest']:.2f}), values differ by {difference:.1e}"
    )
    return {"resnet18": {**row, "relative_difference": difference}}


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """How the cost grows with samples and with parameters: slopes on log-log axes."""
    result: dict[str, Any] = {"samples": {}, "width": {}}
    for samples in (16, 32, 64, 128, 256):
        setting = Setting("cicnn", args.device, samples)
        seconds = timed({"ours": setting.ours}, args.repeats, args.device)
        result["samples"][samples] = statistics.median(seconds["ours"])
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    for width in (0.25, 0.5, 1.0, 2.0):
        model = CICNN(10, (3, 32, 32), width=width).eval()
        count = sum(p.numel() for p in model.parameters())
        job = {"ours": lambda m=model: fisher_information(m, x, "empirical", targets=y)}
        result["width"][count] = statistics.median(timed(job, args.repeats, "cpu")["ours"])
    for axis in ("samples", "width"):
        points = torch.tensor([[float(k), v] for k, v in result[axis].items()]).log()
        centred = points - points.mean(0)
        slope = float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())
        result[f"{axis}_exponent"] = slope
        print(f"cost grows as {axis} to the power of {slope:.2f}")
    return result


_MEMORY = """
import resource, sys, torch
from benchmarks.speed import Setting, _two_losses
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
    """Peak memory that a refresh adds, in a process of its own."""
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


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of cost over a plain pass, on a log axis."""
    import matplotlib.pyplot as plt

    names = list(results)
    peers = ["ours", "torch_func", "backpack", "opacus", "avalanche_ewc", "loop"]
    figure, axes = plt.subplots(figsize=(1.6 + 2.2 * len(names), 3.6), layout="constrained")
    for i, peer in enumerate(peers):
        for j, name in enumerate(names):
            row = results[name].get(peer, {})
            place = j + (i - 2.5) * 0.14
            if "median" in row:
                bar = axes.bar(place, row["median"], 0.13, color=f"C{i}", bottom=0)
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
    axes.axhline(1, color="grey", lw=0.8)
    axes.legend(frameon=False, ncols=3, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "timm", "avalanche-lib", "backpack-for-pytorch", "opacus"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["fisher", "gfi", "penalty", "growth", "memory"])
    parser.add_argument("--nets", default="cicnn,resnet26,resnet18,vit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=None, help="images (default: by network)")
    parser.add_argument("--all-estimators", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = globals()[args.what](args)
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = args.what if args.device == "cpu" else f"{args.what}-{args.device}"
    path = FOLDER / f"{name}.json"
    if args.what in ("fisher", "gfi") and path.exists():  # networks may be run one by one
        result = json.loads(path.read_text())["results"] | result
    document = {"settings": vars(args), "versions": _versions(), "results": result}
    path.write_text(json.dumps(document, indent=1) + "\n")
    if args.what == "fisher":
        plot(result, FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
