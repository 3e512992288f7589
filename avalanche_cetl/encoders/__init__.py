"""Frozen source networks S, and the store of their features.

Only :mod:`~avalanche_cetl.encoders.features`, which joins them to benchmarks, needs Avalanche.
"""

from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.module import ModuleEncoder
from avalanche_cetl.encoders.onnx import ONNXEncoder
from avalanche_cetl.encoders.precomputed import PrecomputedEncoder
from avalanche_cetl.encoders.probe import linear_probe
from avalanche_cetl.encoders.shards import FeatureStoreError
from avalanche_cetl.encoders.timm import TimmEncoder

__all__ = [
    "Encoder",
    "FeatureStoreError",
    "ModuleEncoder",
    "ONNXEncoder",
    "PrecomputedEncoder",
    "TimmEncoder",
    "linear_probe",
]
