"""Metrics and plots."""

from avalanche_cetl.common.pictures import LINE_STYLES, LineStyle, picture
from avalanche_cetl.evaluation.bound import bound_metrics
from avalanche_cetl.evaluation.metrics import cetl_metrics, gfi_metrics
from avalanche_cetl.evaluation.plots import plot_curves, plot_reconstructions
from avalanche_cetl.evaluation.validators import (
    information_maximization,
    negative_entropy,
    soft_neighborhood_density,
    validator_metrics,
)

__all__ = [
    "LINE_STYLES",
    "LineStyle",
    "bound_metrics",
    "cetl_metrics",
    "gfi_metrics",
    "information_maximization",
    "negative_entropy",
    "picture",
    "plot_curves",
    "plot_reconstructions",
    "soft_neighborhood_density",
    "validator_metrics",
]
