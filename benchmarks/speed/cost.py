"""Time what GFIPlugin() costs: a measurement, an iteration, and taking one more experience in."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import CICNN, GFIPlugin, ResNet26
from benchmarks.speed.timing import ratios, spread, timed

SIDE, IMAGES, BATCH, CLASSES = 64, 256, 64, 10
#: Images of an iteration, and how many iterations are timed as one.
ITERATION, AT_ONCE = 32, 5
#: The network of the merges has 199,210 weights; experiences of which its time is written.
WIDTHS = (784, 200, 200, 10)
EXPERIENCES = (1, 2, 10, 50, 100, 200)
#: Images of a small experience.
FEW = 10


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Return by name how a network for images of 64 pixels is built."""
    import timm

    shape = (3, SIDE, SIDE)
    vit = partial(timm.create_model, "vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=4)
    return {
        "cicnn": lambda: CICNN(CLASSES, shape),
        "vit": lambda: vit(num_classes=CLASSES),
        "efficientnet": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES),
        "resnet26": lambda: ResNet26(CLASSES, shape),
    }


def cost(args: argparse.Namespace) -> dict[str, Any]:
    """Time the three parts, the first two against a network's own work in the same round.

    A plain pass, forward and backward, of the 256 images of a measurement is in mini-batches of 64,
    and once more all at once, as the measurement's other figures on the page are.
    """
    chosen = [name for name in args.nets.split(",") if name in networks()]
    result: dict[str, Any] = {name: _network(name, args) for name in chosen}
    if "mlp" in args.nets.split(","):
        result["merging"] = _merging(args)
    return result


def _network(name: str, args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = networks()[name]().to(args.device)
    x = torch.randn(IMAGES, 3, SIDE, SIDE, device=args.device)
    y = torch.randint(CLASSES, (IMAGES,), device=args.device)

    def plain(size: int) -> None:
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()

    def measurement() -> None:
        GFIPlugin().remember(model, x, y)

    measurement()  # the routes of a network's gradients are looked for once
    jobs = {
        "plain": partial(plain, BATCH),
        "plain, all at once": partial(plain, IMAGES),
        "measurement": measurement,
    }
    seconds = timed(jobs, args.repeats, args.device)
    plugin = GFIPlugin()
    plugin.remember(model, x, y)
    plugin.hold(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    small = x[:ITERATION], y[:ITERATION]
    jobs = {
        "Naive": lambda: _train(model, optimizer, *small, None),
        "GFIPlugin()": lambda: _train(model, optimizer, *small, plugin),
    }
    iteration = ratios(timed(jobs, 2 * args.repeats, args.device), "Naive")
    rows = {
        "weights": sum(p.numel() for p in model.parameters()),
        "rounds": args.repeats,
        "measurement": ratios(seconds, "plain")["measurement"],
        "measurement, all at once": ratios(seconds, "plain, all at once")["measurement"],
        "iteration": iteration["GFIPlugin()"],
    }
    print(name, "measurement", spread(rows["measurement"]), "iteration", spread(rows["iteration"]))
    return rows


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, plugin: Any
) -> None:
    """Train some iterations, as a strategy does with a plugin or without."""
    model.train()
    now = SimpleNamespace(train_exp_counter=1, train_exp_epochs=0, train_exp_iterations=1)
    strategy = SimpleNamespace(model=model, optimizer=optimizer, device=x.device, clock=now)
    for _ in range(AT_ONCE):
        optimizer.zero_grad()
        strategy.loss = F.cross_entropy(model(x), y)
        if plugin is not None:
            plugin.before_backward(strategy)
        strategy.loss.backward()
        optimizer.step()
        if plugin is not None:
            plugin.after_update(strategy)


def _merging(args: argparse.Namespace) -> dict[str, Any]:
    """Time what taking an experience in costs after its measurement, by their number."""
    rows = {f"{count} images": _merges(args, count) for count in (IMAGES, FEW)}
    print("milliseconds to take an experience in", rows)
    weights = sum(inputs * outputs + outputs for inputs, outputs in pairwise(WIDTHS))
    return {"weights": weights, "milliseconds": rows}


def _merges(args: argparse.Namespace, images: int) -> dict[str, float]:
    """Return the mean over ten experiences of so many images each, by the number of the last."""
    torch.manual_seed(0)
    pairs = pairwise(WIDTHS)
    layers = [part for sizes in pairs for part in (nn.Linear(*sizes), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).to(args.device)
    params = dict(model.named_parameters())
    image = torch.rand(images, WIDTHS[0], device=args.device).pow(4)
    experiences = []
    for _ in range(20):  # of other pixels; they come again and again
        one = GFIPlugin()
        one.remember(model, image[:, torch.randperm(WIDTHS[0])])
        experiences.append((one.importances[-1], one.bases[-1]))
    store = GFIPlugin().store
    milliseconds = []
    for number in range(max(EXPERIENCES)):
        fisher, basis = experiences[number % len(experiences)]
        add = partial(store.add, number, fisher, basis, params, ())
        start = time.process_time()  # of the processor: other work does not count
        add()
        milliseconds.append(1000 * (time.process_time() - start))
    nearby = {count: milliseconds[max(0, count - 10) : count] for count in EXPERIENCES}
    return {str(count): round(sum(some) / len(some), 1) for count, some in nearby.items()}
