"""Transfer, distillation and adaptation as Avalanche benchmarks."""

from avalanche_cetl.scenarios.benchmarks import adaptation_benchmark, transfer_benchmark

__all__ = ["adaptation_benchmark", "transfer_benchmark"]
