"""All plugins, and the contract between them and a strategy."""

from avalanche_cetl.plugins.adaptation import InformationMaximization, MinimumClassConfusion
from avalanche_cetl.plugins.contract import CETLPlugin, CoupledStep, Stage, Training, training_of
from avalanche_cetl.plugins.fitnets import FitNetsHints
from avalanche_cetl.plugins.gfi import GFIPlugin
from avalanche_cetl.plugins.hints import DecoderHints
from avalanche_cetl.plugins.history import History, Progress
from avalanche_cetl.plugins.losses import DistillationPlugin, LossPlugin, LossRows
from avalanche_cetl.plugins.soft_targets import SoftTargets
from avalanche_cetl.plugins.views import ViewConsistency

__all__ = [
    "CETLPlugin",
    "CoupledStep",
    "DecoderHints",
    "DistillationPlugin",
    "FitNetsHints",
    "GFIPlugin",
    "History",
    "InformationMaximization",
    "LossPlugin",
    "LossRows",
    "MinimumClassConfusion",
    "Progress",
    "SoftTargets",
    "Stage",
    "Training",
    "ViewConsistency",
    "training_of",
]
