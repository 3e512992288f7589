"""Unusual data and networks, and processes that die."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from avalanche_cetl import (
    CoupledModel,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)
from benchmarks.faults.subject import SHAPE, digits, make, model
from benchmarks.faults.trials.outcome import benchmark, finite, refused


def _deadly(image: Tensor) -> Tensor:
    """End the process, if it is one that loads data."""
    if torch.utils.data.get_worker_info() is not None:
        os._exit(9)
    return image


def dying_worker(_folder: Path) -> str:
    """A process that loads data dies."""
    data = benchmark(train_transform=_deadly)
    return refused(
        RuntimeError,
        lambda: make().train(data.train_stream, eval_streams=[], num_workers=1),
        "DataLoader worker",
    )


def no_labels(_folder: Path) -> str:
    """An experience without a labelled row."""
    experience = benchmark(labels_per_class=1).train_stream[0]
    hidden = [i for i, label in enumerate(experience.dataset.targets) if int(label) < 0]
    experience._dataset = experience.dataset.subset(hidden)
    return refused(ValueError, lambda: make().train(experience), "no labelled row")


def ten_thousand_classes(folder: Path) -> str:
    """Very many classes."""
    torch.manual_seed(0)
    x, _ = digits(48)
    y = torch.randint(0, 10_000, (48,))
    y[0], y[1] = 9_999, 0
    data = transfer_benchmark((x, y), (x[:8], y[:8]))
    strategy = make(model(classes=10_000), train_epochs=1)
    strategy.train(data.train_stream)
    save_checkpoint(strategy, folder / "x.safetensors")
    load_checkpoint(make(model(classes=10_000), train_epochs=1), folder / "x.safetensors")
    return finite(strategy)


def one_image_and_batchnorm(_folder: Path) -> str:
    """A last mini-batch of one image, in a network with BatchNorm."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip
    strategy = make(CoupledModel.build(model().source, network, SHAPE), train_mb_size=47)
    strategy.train(benchmark().train_stream)
    return finite(strategy)


def nothing_shared(_folder: Path) -> str:
    """A decoder without a weight to train: the two tasks share none."""
    network = model()
    for parameter in network.decoder_parameters().values():
        parameter.requires_grad_(False)
    before = {n: p.clone() for n, p in network.decoder_parameters().items()}
    strategy = make(network)
    strategy.train(benchmark().train_stream)
    assert all(torch.equal(p, before[n]) for n, p in network.decoder_parameters().items())
    return finite(strategy)
