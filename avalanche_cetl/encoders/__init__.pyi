from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.module import ModuleEncoder
from avalanche_cetl.encoders.onnx import ONNXEncoder
from avalanche_cetl.encoders.precomputed import PrecomputedEncoder
from avalanche_cetl.encoders.probe import linear_probe
from avalanche_cetl.encoders.timm import TimmEncoder

__all__ = [
    "Encoder",
    "ModuleEncoder",
    "ONNXEncoder",
    "PrecomputedEncoder",
    "TimmEncoder",
    "linear_probe",
]
