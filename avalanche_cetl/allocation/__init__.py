"""Dynamic Weight Allocation: how importances are measured, when, and the penalties of them."""

from torch import Tensor

from avalanche_cetl.allocation.allocation import Allocation
from avalanche_cetl.allocation.importance import PAIRS, Importance, measure_importance
from avalanche_cetl.allocation.penalty import WeightPenalty
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.warning import warn_caller

__all__ = [
    "PAIRS",
    "Allocation",
    "GFISettings",
    "Importance",
    "WeightPenalty",
    "measure_importance",
]


def Sample(images: Tensor, labels: Tensor, tasks: Tensor, features: Tensor | None = None) -> Batch:
    """Return a batch of these, by its name of version 0.2."""
    text = "Sample(images, labels, tasks, features) is Batch([images, labels, tasks], features) now"
    warn_caller(f"{text}; import it from avalanche_cetl.plugins.", DeprecationWarning)
    return Batch([images, labels, tasks], features)
