"""What runs inside Avalanche's training loop."""

from avalanche_cetl.training.checks import NonFiniteLossError
from avalanche_cetl.training.consistency import ViewConsistency
from avalanche_cetl.training.distillation import DistillationPlugin, DistilledRows, SoftTargets
from avalanche_cetl.training.gfi import GFI
from avalanche_cetl.training.hints import DecoderHints, FitNetsHints
from avalanche_cetl.training.plugins import GFIPlugin
from avalanche_cetl.training.settings import GFISettings, Variant
from avalanche_cetl.training.stages import CETLPlugin, CoupledStep, Stage
from avalanche_cetl.training.strategy import CETLStrategy

__all__ = [
    "GFI",
    "CETLPlugin",
    "CETLStrategy",
    "CoupledStep",
    "DecoderHints",
    "DistillationPlugin",
    "DistilledRows",
    "FitNetsHints",
    "GFIPlugin",
    "GFISettings",
    "NonFiniteLossError",
    "SoftTargets",
    "Stage",
    "Variant",
    "ViewConsistency",
]
