"""The run that is killed: CETL on scikit-learn's digits, with all that can be random in it."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CheckpointPlugin,
    CoupledModel,
    DecoderHints,
    GFISettings,
    ModuleEncoder,
    ViewConsistency,
    cetl_metrics,
    load_checkpoint,
    transfer_benchmark,
)

SHAPE = (1, 8, 8)


def digits(count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 1, 8, 8)`` in [0, 1] and labels of ten classes."""
    found = load_digits()
    rows = slice(start, start + count)
    images = torch.as_tensor(found.images[rows], dtype=torch.float32).div(16).unsqueeze(1)
    return images, torch.as_tensor(found.target[rows])


def model(width: float = 0.05, classes: int = 10) -> CoupledModel:
    """S, a fixed random network, T1 and T2."""
    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    target = CICNN(classes, SHAPE, width=width, dropout=0.1)
    return CoupledModel.build(ModuleEncoder(source, input_shape=SHAPE), target, SHAPE)


def shaken(x: Tensor) -> Tensor:
    """Views by all three global generators."""
    move = random.randint(-1, 1), int(np.random.randint(-1, 2))
    return x.roll(move, (2, 3)) + 0.02 * torch.randn_like(x)


def make(network: CoupledModel | None = None, **arguments: Any) -> CETLStrategy:
    """Make the strategy."""
    network = model() if network is None else network
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    settings: dict[str, Any] = {
        "preset": "paper",
        "gfi": GFISettings(samples=16),
        "dwa_lambda": 0.1,
        "warmup_epochs": 1,
        "train_mb_size": 16,
        "train_epochs": 2,
        "eval_mb_size": 200,
        "evaluator": None,
        **arguments,
    }
    return CETLStrategy(model=network, optimizer=optimizer, **settings)


def whole_run(folder: Path, plugins: list[Any] | None = None, rounds: int = 4) -> None:
    """Run, or go on where a killed run stood; leave weights, metrics and a log in the folder."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoints"
    network = model()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
    begun = checkpoints.is_dir() and any(checkpoints.glob("checkpoint-*.safetensors"))
    with (folder / "log.txt").open("a+" if begun else "w+") as log:
        strategy = CETLStrategy(
            model=network,
            optimizer=optimizer,
            preset="paper",
            gfi=GFISettings(samples=16),
            dwa_lambda=0.1,
            warmup_epochs=1,
            input_noise=0.1,
            augment=shaken,
            train_mb_size=16,
            train_epochs=rounds,
            eval_mb_size=200,
            eval_every=1,
            plugins=[
                DecoderHints(0.3),
                ViewConsistency(1.0),
                LRSchedulerPlugin(schedule),
                CheckpointPlugin(checkpoints),
                *(plugins or []),
            ],
            evaluator=EvaluationPlugin(
                accuracy_metrics(minibatch=True, epoch=True, stream=True),
                cetl_metrics(),
                loggers=[TextLogger(log)],
            ),
        )
        benchmark = transfer_benchmark(digits(96), digits(100, 200))
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        if begun:
            load_checkpoint(strategy, checkpoints)
        strategy.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    save_file(network.state_dict(), folder / "final.safetensors")
    results = strategy.evaluator.get_all_metrics()
    (folder / "metrics.json").write_text(json.dumps(results, sort_keys=True))
