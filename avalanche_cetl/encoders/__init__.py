"""Frozen source networks S."""

from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.module import ModuleEncoder
from avalanche_cetl.encoders.timm import TimmEncoder

__all__ = ["Encoder", "ModuleEncoder", "TimmEncoder"]
