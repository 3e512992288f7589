"""What runs inside Avalanche's training loop."""

from avalanche_cetl.training.checks import NonFiniteLossError
from avalanche_cetl.training.plugins import GFI, GFIPlugin
from avalanche_cetl.training.settings import GFISettings, Variant
from avalanche_cetl.training.stages import CETLPlugin, Stage
from avalanche_cetl.training.strategy import CETLStrategy

__all__ = [
    "GFI",
    "CETLPlugin",
    "CETLStrategy",
    "GFIPlugin",
    "GFISettings",
    "NonFiniteLossError",
    "Stage",
    "Variant",
]
