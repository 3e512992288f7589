"""CETLStrategy and what it is made of."""

from avalanche_cetl.common.errors import NonFiniteLossError
from avalanche_cetl.plugins.contract import Stage
from avalanche_cetl.training.gfi import GFI
from avalanche_cetl.training.multi_task import MultiTaskCoupledModel
from avalanche_cetl.training.presets import parse_preset
from avalanche_cetl.training.strategy import CETLStrategy
from avalanche_cetl.training.variants import Variant

__all__ = [
    "GFI",
    "CETLStrategy",
    "MultiTaskCoupledModel",
    "NonFiniteLossError",
    "Stage",
    "Variant",
    "parse_preset",
]
