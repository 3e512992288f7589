"""Torch modules: the coupled network, decoders and target networks."""

from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.models.decoders import ReversedDecoder
from avalanche_cetl.models.resnet import ResNet26
from avalanche_cetl.models.ridge import RidgeHead
from avalanche_cetl.models.targets import CICNN, Target, as_target

__all__ = [
    "CICNN",
    "CoupledModel",
    "ResNet26",
    "ReversedDecoder",
    "RidgeHead",
    "Target",
    "as_target",
]
