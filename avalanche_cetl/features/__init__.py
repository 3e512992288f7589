"""The store of S's features, and what joins them to benchmarks."""

from avalanche_cetl.common.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
