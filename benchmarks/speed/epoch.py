"""What a training epoch costs: with GFIPlugin or EWCPlugin, and a CETL round over bare torch."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CoupledModel,
    GFIPlugin,
    GFISettings,
    ModuleEncoder,
)
from avalanche_cetl.allocation import PAIRS, Importance, measure_importance
from avalanche_cetl.plugins import Batch
from benchmarks.speed.timing import clock, ratios, spread

SHAPE = (3, 32, 32)


def epoch(args: argparse.Namespace) -> dict[str, Any]:
    """Time an epoch of CI-CNN at batch 128; the importance passes that belong to it included."""
    rows = args.samples or 2048
    torch.manual_seed(0)
    x = torch.randn(rows, *SHAPE)
    y = torch.randint(10, (rows,))
    result = {"images": rows, "plugins": _plugins(args, x, y), "round": _round(args, x, y)}
    for name in ("plugins", "round"):
        print(name)
        for job, row in result[name].items():
            print(f"  {job:24} {spread(row)}")
    return result


def _experience(x: Tensor, y: Tensor) -> Any:
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils import as_classification_dataset

    data = TensorDataset(x, y)
    data.targets = y  # type: ignore[attr-defined]
    benchmark = benchmark_from_datasets(train=[as_classification_dataset(data)])
    return with_classes_timeline(benchmark).train_stream[0]


def _plugins(args: argparse.Namespace, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """Time the second experience, one epoch, over that of Naive training."""
    from avalanche.training.plugins import EWCPlugin
    from avalanche.training.supervised import Naive

    experience = _experience(x, y)
    makers: dict[str, Any] = {
        "Naive": list,
        "GFIPlugin, 256 images": lambda: [GFIPlugin(1.0, basis="diagonal")],
        "GFIPlugin, all images": lambda: [GFIPlugin(1.0, samples=len(x), basis="diagonal")],
        "no gate, all images": lambda: [
            GFIPlugin(1.0, threshold=0.0, probability=1.0, samples=len(x), basis="diagonal")
        ],
        "EWCPlugin": lambda: [EWCPlugin(1.0)],
    }
    strategies = {}
    for name, plugins in makers.items():
        torch.manual_seed(0)
        model = CICNN(10, SHAPE).to(args.device)
        strategies[name] = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=128,
            plugins=plugins(),
            evaluator=None,
            device=args.device,
        )
        strategies[name].train(experience)
    seconds: dict[str, list[float]] = {name: [] for name in strategies}
    for _ in range(args.repeats):
        for name, strategy in strategies.items():
            again = copy.deepcopy(strategy)  # each time its second experience
            seconds[name].append(clock(lambda s=again: s.train(experience), args.device))  # type: ignore[misc]
    return ratios(seconds, "Naive")


VARIANTS = {"e": None, "fi": "fisher", "gfi": "gfi"}


def _round(args: argparse.Namespace, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """Time a round of CETL over a loop by hand that does the same passes and steps, by variant."""
    x = x.sigmoid()
    experience = _experience(x, y)
    found = {}
    for variant, importance in VARIANTS.items():
        model = _coupled(args.device)
        strategy = CETLStrategy(
            model=model,
            optimizer=_optimizer(model.parameters()),
            preset="paper",
            variant=variant,
            train_mb_size=128,
            evaluator=None,
            device=args.device,
        )
        jobs: dict[str, Any] = {
            "by hand": _by_hand(args, x, y, importance),
            "CETLStrategy": lambda s=strategy: s.train(experience),  # type: ignore[misc]
        }
        for job in jobs.values():  # the first round fits statistics and plans routes
            job()
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(args.repeats):
            for name, job in jobs.items():
                seconds[name].append(clock(job, args.device))
        found[f"CETLStrategy, {variant}"] = ratios(seconds, "by hand")["CETLStrategy"]
    return found


def _coupled(device: str) -> CoupledModel:
    torch.manual_seed(0)
    source = ModuleEncoder(CICNN(10, SHAPE), input_shape=SHAPE)
    return CoupledModel.build(source, CICNN(10, SHAPE), SHAPE).to(device)


def _optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=1e-3, momentum=0.9)


def _by_hand(args: argparse.Namespace, x: Tensor, y: Tensor, importance: Any) -> Callable[[], None]:
    """Return Algorithm 1 in plain torch, without a check of anything.

    Importances, if any, are measured by the package's own functions on as many images as the
    strategy reads: what they cost over a forward and a backward pass is another benchmark's
    question (``fisher``, ``gfi``).
    """
    model = _coupled(args.device)
    decoder = list(model.decoder_parameters().values())
    target = list(model.target_parameters().values())
    optimizers = [_optimizer(decoder), _optimizer(decoder + target), _optimizer(target)]
    loader = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
    settings, generator = GFISettings(), torch.Generator().manual_seed(0)
    measured: dict[str, Importance] = {}
    model.train()

    def reconstruction(x: Tensor, _y: Tensor) -> Tensor:
        return F.mse_loss(model.reconstruct_source(x), x)

    def coupling(x: Tensor, _y: Tensor) -> Tensor:
        with torch.no_grad():
            goal = model.reconstruct_source(x)
        return F.mse_loss(model.reconstruct_target(x), goal)

    def classification(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    def refresh(name: str) -> None:
        rows = torch.randperm(len(x), generator=generator)[: settings.samples]
        labels = y[rows].to(args.device)
        sample = Batch([x[rows].to(args.device), labels, torch.zeros_like(labels)])
        measured[name] = measure_importance(
            model, PAIRS[name], sample, settings, importance, generator
        )

    def run() -> None:
        losses = (reconstruction, coupling, classification)
        penalties, after = ("GFI2", "GFI1", "GFI3"), (("GFI1",), ("GFI2", "GFI3"), ())
        for stage, loss_of in enumerate(losses):
            for x, y in loader:
                optimizers[stage].zero_grad()
                loss = loss_of(x.to(args.device), y.to(args.device))
                if penalties[stage] in measured:
                    loss = loss + measured[penalties[stage]].penalty(model, 1e-3)
                loss.backward()
                optimizers[stage].step()
            for name in after[stage] if importance else ():
                refresh(name)

    return run
