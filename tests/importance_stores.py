"""Stores of old tasks, and what tasks that are drawn bring into them."""

import torch
from naive_bases import drawn_layer, drawn_values
from torch import Tensor

from avalanche_cetl.allocation.kronecker_store import KroneckerStore
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.allocation.store import DiagonalStore
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis

SHAPES = {"w": torch.Size([4, 5]), "b": torch.Size([4]), "norm": torch.Size([3])}
OPEN = {"threshold": 0.0, "probability": 1.0}
GATED = {"threshold": 0.5, "probability": 0.9}
MODES = [None, 0.5]


def settings(kind, gate=OPEN, **arguments):
    return GFISettings(basis=kind, **gate, **arguments)


def measured(kind, seed, shapes=SHAPES, rank=99):
    """Importance of an experience, and its basis."""
    if kind == "diagonal":
        return {name: drawn_values(seed + 9, shape) for name, shape in shapes.items()}, None
    layer = drawn_layer(seed, shapes["w"], rank)
    own = {"w": drawn_values(seed, layer.shape), "norm": drawn_values(seed + 9, shapes["norm"])}
    return own, KroneckerBasis({"w": layer})


def store_of(kind, decay=None, gate=OPEN, keep=True, **arguments):
    make = KroneckerStore if kind == "kronecker" else DiagonalStore
    return make(settings(kind, gate, **arguments), decay, keep)


def differing(one, other, where="state"):
    """Places in which two states differ."""
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [where]
        return [d for key in one for d in differing(one[key], other[key], f"{where}.{key}")]
    return [] if one == other else [where]
