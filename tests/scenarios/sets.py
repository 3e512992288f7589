"""Small sets of images, and what a benchmark made of them holds."""

import torch

from avalanche_cetl import transfer_benchmark


def labels(stream, experience=0):
    return [int(t) for t in stream[experience].dataset.targets]


def rgb(rows=12, size=(6, 10), classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, *size, generator=generator), torch.arange(rows) % classes


def both(image, **transforms):
    """The first image of a benchmark whose rows are all this one."""
    rows = [(image, i % 2) for i in range(4)]
    return transfer_benchmark(tuple(rows), tuple(rows), **transforms).train_stream[0].dataset[0][0]
