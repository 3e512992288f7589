"""Fisher information, relative Fisher information and their gate: mathematics only."""

from avalanche_cetl.information.estimators import register_estimator
from avalanche_cetl.information.fisher import fisher_information
from avalanche_cetl.information.generalized import (
    Quantile,
    dwa_penalty,
    generalized_fisher,
    normalize_importance,
    shared_weights,
)
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis
from avalanche_cetl.information.gradients.registry import register_layer_gradients
from avalanche_cetl.information.kronecker import kronecker_basis
from avalanche_cetl.information.outputs import (
    every_output_vector,
    projected_outputs,
    sample_output_vectors,
)
from avalanche_cetl.information.relative import fisher_and_relative, relative_fisher

__all__ = [
    "KroneckerBasis",
    "LayerBasis",
    "Quantile",
    "dwa_penalty",
    "every_output_vector",
    "fisher_and_relative",
    "fisher_information",
    "generalized_fisher",
    "kronecker_basis",
    "normalize_importance",
    "projected_outputs",
    "register_estimator",
    "register_layer_gradients",
    "relative_fisher",
    "sample_output_vectors",
    "shared_weights",
]
