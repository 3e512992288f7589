"""The plugins that are compared, and the networks that all of them train."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.continual.streams import Stream


class Method(NamedTuple):
    """A row of the table.

    :ivar plugins: of a strength and a stream.
    :ivar start: the strength in the middle of the first three that are tried; None: it has none.
    :ivar factor: between two strengths.
    """

    plugins: Callable[[float, Stream], list[Any]]
    start: float | None = None
    factor: float = 10.0


def methods() -> dict[str, Method]:
    """Return the rows by name."""
    from avalanche.training import plugins as ap

    from avalanche_cetl import GFIPlugin

    def gfi(**arguments: Any) -> Callable[[float, Stream], list[Any]]:
        return lambda strength, _: [GFIPlugin(strength, basis="diagonal", **arguments)]

    def directions(**arguments: Any) -> Callable[[float, Stream], list[Any]]:
        return lambda strength, stream: [
            GFIPlugin(strength, basis="kronecker", **{**sampled, **arguments}, **stream.gfi)
        ]

    sampled = {"fisher": "sampled", "normalize": True, "penalty": "proximal"}
    free = {"threshold": 0.0, "probability": 1.0}
    gated = {"threshold": 0.5, "probability": 0.9}
    fading = {"mode": "online", "decay_factor": 0.95}
    return {
        "Naive": Method(lambda s, _: []),
        "EWC": Method(lambda s, _: [ap.EWCPlugin(s)], 100.0),
        "EWC, online": Method(lambda s, _: [ap.EWCPlugin(s, **fading)], 100.0),
        "LwF": Method(lambda s, _: [ap.LwFPlugin(s, 2.0)], 1.0, 3.0),
        "SI": Method(lambda s, _: [ap.SynapticIntelligencePlugin(s)], 100.0),
        "MAS": Method(lambda s, _: [ap.MASPlugin(s)], 0.1),
        "RWalk": Method(lambda s, _: [ap.RWalkPlugin(s)], 1.0),
        "GFIPlugin()": Method(lambda s, _: [GFIPlugin()]),
        "GFIPlugin, diagonal": Method(gfi(**free), 10.0),
        "GFIPlugin, diagonal, gate": Method(gfi(), 10.0),
        "GFIPlugin, Kronecker": Method(directions(), 10.0),
        "GFIPlugin, Kronecker, in the loss": Method(directions(penalty="loss"), 0.01),
        "GFIPlugin, Kronecker, online": Method(directions(**fading), 10.0),
        "GFIPlugin, Kronecker, gate": Method(directions(**gated), 10.0),
        "Replay": Method(lambda s, stream: [ap.ReplayPlugin(stream.replayed)]),
        "GFIPlugin(), and replay": Method(
            lambda s, stream: [ap.ReplayPlugin(stream.replayed), GFIPlugin()]
        ),
        "GFIPlugin, Kronecker, and replay": Method(
            lambda s, stream: [ap.ReplayPlugin(stream.replayed), *directions()(s, stream)], 10.0
        ),
        "joint": Method(lambda s, _: []),
    }


def network(stream: Stream, seed: int) -> nn.Module:
    """Make a stream's network; where its experiences have heads, with a head for each.

    ``("dense", inputs, *hidden)``: Linear layers with ReLU. ``("convolutional",)``: three
    convolutions and two Linear layers. ``("residual",)``: three residual blocks of two
    convolutions with BatchNorm, 16 to 64 channels, for 32x32 colour images.
    """
    from avalanche.models import MultiHeadClassifier, MultiTaskModule

    kind, *sizes = stream.network
    torch.manual_seed(seed)
    body: nn.Module
    if kind == "dense":
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        body, features = nn.Sequential(*layers), sizes[-1]
    elif kind == "convolutional":
        body, features = _convolutional(), 64
    else:
        body, features = _residual(), 64
    if not stream.heads:
        return nn.Sequential(body, nn.Linear(features, stream.classes))

    class Heads(MultiTaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = body
            # Masked units fail on benchmarks made of data sets (Avalanche 0.6).
            self.classifier = MultiHeadClassifier(features, stream.classes, masking=False)

        def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
            return self.classifier(self.body(x), task_labels)

    return Heads()


def _convolutional() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU())


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.side = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.side = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.side(x)).relu()


def _residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _Block(16, 16, 1),
        _Block(16, 32, 2),
        _Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
