"""Frozen source networks S."""

from avalanche_cetl.common.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
