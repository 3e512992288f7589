"""Dynamic Weight Allocation: how importances are measured, when, and the penalties of them."""

from avalanche_cetl.allocation.allocation import Allocation
from avalanche_cetl.allocation.importance import PAIRS, Importance, measure_importance
from avalanche_cetl.allocation.penalty import WeightPenalty
from avalanche_cetl.allocation.sample import Sample
from avalanche_cetl.allocation.settings import GFISettings

__all__ = [
    "PAIRS",
    "Allocation",
    "GFISettings",
    "Importance",
    "Sample",
    "WeightPenalty",
    "measure_importance",
]
