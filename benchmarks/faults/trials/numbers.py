"""Numbers that are not finite, in images, features, gradients and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_cetl import (
    CheckpointPlugin,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.faults.subject import digits, make, model
from benchmarks.faults.trials.outcome import Trial, benchmark, refused


def broken_images(value: float) -> Trial:
    """Return the trial of a value in an image."""

    def trial(_folder: Path) -> str:
        x, _ = digits(48)
        x[5, 0, 3, 3] = value
        return refused(ValueError, lambda: make().train(benchmark(x).train_stream), "images")

    trial.__doc__ = f"{value} in an image."
    return trial


def broken_features(folder: Path) -> str:
    """A source network that gives NaN."""
    network = model()
    assert network.source is not None
    with torch.no_grad():
        for p in network.source.parameters():
            p.fill_(float("nan"))
    return refused(
        ValueError,
        lambda: with_source_features(benchmark(), network.source, folder),
        "not finite",
    )


def broken_live_features(_folder: Path) -> str:
    """The same, with S run in training."""
    network = model()
    assert network.source is not None
    with torch.no_grad():
        for p in network.source.parameters():
            p.fill_(float("inf"))
    return refused(ValueError, lambda: make(network).train(benchmark().train_stream), "")


class _BreaksGradients(SupervisedPlugin):
    """Puts NaN into one gradient of the last step."""

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Break one."""
        next(p for p in strategy.model.target.parameters()).grad.fill_(float("nan"))


def broken_gradients(folder: Path) -> str:
    """NaN in gradients, while the loss is finite: no checkpoint may hold what comes of it."""
    x, y = digits(16)
    one_batch = transfer_benchmark((x, y), digits(10, 200))
    plugins = [_BreaksGradients(), CheckpointPlugin(folder, ignore=["_BreaksGradients"])]
    strategy = make(train_epochs=1, plugins=plugins)
    said = refused(ValueError, lambda: strategy.train(one_batch.train_stream), "NaN")
    assert not list(folder.glob("*.safetensors")), "a broken checkpoint was kept"
    return said


class _NaNLoss(nn.Module):
    """A criterion that gives NaN."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return NaN."""
        return outputs.sum() * float("nan")


def broken_loss(_folder: Path) -> str:
    """A criterion that gives NaN."""
    return refused(
        ValueError, lambda: make(criterion=_NaNLoss()).train(benchmark().train_stream), "L_c"
    )
