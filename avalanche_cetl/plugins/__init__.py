"""All plugins, and the contract between them and a strategy."""

from typing import Any

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.plugins.adaptation import InformationMaximization, MinimumClassConfusion
from avalanche_cetl.plugins.base import CETLPlugin, Stage, Strategy, Training, training_of
from avalanche_cetl.plugins.fitnets import FitNetsHints
from avalanche_cetl.plugins.gfi import GFIPlugin
from avalanche_cetl.plugins.hints import DecoderHints
from avalanche_cetl.plugins.history import History, Progress
from avalanche_cetl.plugins.losses import DistillationPlugin, LossPlugin
from avalanche_cetl.plugins.soft_targets import SoftTargets
from avalanche_cetl.plugins.views import ViewConsistency

__all__ = [
    "Batch",
    "CETLPlugin",
    "DecoderHints",
    "DistillationPlugin",
    "FitNetsHints",
    "GFIPlugin",
    "History",
    "InformationMaximization",
    "LossPlugin",
    "MinimumClassConfusion",
    "Progress",
    "SoftTargets",
    "Stage",
    "Strategy",
    "Training",
    "ViewConsistency",
    "training_of",
]


def __getattr__(name: str) -> Any:
    """Return ``Batch`` under its names of version 0.2."""
    if name not in ("CoupledStep", "LossRows"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_caller(f"{name} is called Batch now.", DeprecationWarning)
    return Batch
