"""Transfer, distillation and adaptation as Avalanche benchmarks."""

from avalanche_cetl.scenarios.benchmarks import (
    adaptation_benchmark,
    distillation_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.scenarios.mixed import mixed_images, with_mixed_images
from avalanche_cetl.scenarios.paper import paper_benchmark
from avalanche_cetl.scenarios.scenario import CETLScenario, plot_benchmark

__all__ = [
    "CETLScenario",
    "adaptation_benchmark",
    "distillation_benchmark",
    "mixed_images",
    "paper_benchmark",
    "plot_benchmark",
    "transfer_benchmark",
    "with_mixed_images",
]
