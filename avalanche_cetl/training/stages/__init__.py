"""The stages of a round: one class each, and the one step that they all take."""

from avalanche_cetl.training.stages.base import Callbacks, Payment, TrainingStage
from avalanche_cetl.training.stages.classify import ClassifyStage, LabelledRows
from avalanche_cetl.training.stages.coupled import CoupledStage
from avalanche_cetl.training.stages.direct import DirectStage
from avalanche_cetl.training.stages.merged import MergedStage
from avalanche_cetl.training.stages.source import SourceStage

__all__ = [
    "Callbacks",
    "ClassifyStage",
    "CoupledStage",
    "DirectStage",
    "LabelledRows",
    "MergedStage",
    "Payment",
    "SourceStage",
    "TrainingStage",
]
