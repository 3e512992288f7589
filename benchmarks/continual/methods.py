"""The plugins that are compared, and the network that all of them train."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN = 128


def methods() -> dict[str, tuple[Callable[[float], Any], tuple[float, ...]]]:
    """Return by name the plugin of a strength, and the strengths to choose from."""
    from avalanche.training.plugins import (
        EWCPlugin,
        LwFPlugin,
        MASPlugin,
        RWalkPlugin,
        SynapticIntelligencePlugin,
    )

    from avalanche_cetl import GFIPlugin

    ours = (1e-2, 1e-1, 1.0, 10.0, 100.0)
    # A pull that Adam's moments do not divide: its strengths lie higher.
    pulled = (1.0, 10.0, 1e2, 1e3, 1e4)
    forms: dict[str, dict[str, Any]] = {
        "per-sample EWC": {"threshold": 0.0, "probability": 1.0},
        "GFI": {},
        "GFI, u = 0.2": {"threshold": 0.2},
    }
    return {
        "Naive": (lambda strength: None, (0.0,)),
        "EWC": (lambda s: EWCPlugin(s), (10.0, 1e2, 1e3, 1e4, 1e5)),
        "LwF": (lambda s: LwFPlugin(s, 2.0), (0.1, 0.3, 1.0, 3.0, 10.0)),
        "SI": (lambda s: SynapticIntelligencePlugin(s), (1.0, 10.0, 1e2, 1e3, 1e4)),
        "MAS": (lambda s: MASPlugin(s), (1e-2, 1e-1, 1.0, 10.0, 100.0)),
        "RWalk": (lambda s: RWalkPlugin(s), (0.1, 1.0, 10.0, 100.0, 1e3)),
        **{name: (partial(GFIPlugin, penalty="loss", **f), ours) for name, f in forms.items()},
        **{f"{name}, proximal": (partial(GFIPlugin, **f), pulled) for name, f in forms.items()},
    }


def network(stream: str, size: int, seed: int) -> nn.Module:
    """Make a network of two hidden layers; for split-task with a head for each experience."""
    from avalanche.models import MultiHeadClassifier, MultiTaskModule

    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(size * size, HIDDEN), nn.ReLU())
    if stream != "split-task":
        classes = 2 if stream == "split-domain" else 10
        return nn.Sequential(
            trunk, nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
        )

    class Heads(MultiTaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(trunk, nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
            # Masked units fail on benchmarks made of data sets (Avalanche 0.6).
            self.classifier = MultiHeadClassifier(HIDDEN, 2, masking=False)

        def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
            return self.classifier(self.trunk(x), task_labels)

    return Heads()
