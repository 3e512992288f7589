"""The types of arguments that are a choice name the values that are accepted, and no others."""

from typing import get_args

import pytest

from avalanche_cetl import (
    FitNetsHints,
    GFIPlugin,
    GFISettings,
    InformationMaximization,
    MinimumClassConfusion,
    SoftTargets,
    ViewConsistency,
)
from avalanche_cetl.allocation.settings import DEFAULTS, Basis, Mode, Penalty
from avalanche_cetl.features.extraction import DTYPES, StoredType
from avalanche_cetl.information.estimators import ESTIMATORS, Estimator, check_estimator
from avalanche_cetl.information.likelihood import LossName, negative_log_likelihood
from avalanche_cetl.information.outputs import Likelihood
from avalanche_cetl.plugins.losses import AnyRows, Rows
from avalanche_cetl.plugins.views import TargetRows
from avalanche_cetl.training import VARIANTS, Engine, Recipe, parse_preset
from avalanche_cetl.training.engine import Precision
from avalanche_cetl.training.presets import PresetName
from avalanche_cetl.training.recipe import Alternate
from avalanche_cetl.training.variants import VariantName, parse_variant

TAKEN = [
    (VariantName, parse_variant),
    (PresetName, parse_preset),
    (Alternate, lambda value: Recipe.of(variant="e", alternate=value)),
    (Precision, lambda value: Engine(value, False, 1, False)),
    (Estimator, check_estimator),
    (Basis, lambda value: GFISettings(basis=value)),
    (LossName, lambda value: GFISettings(fisher=value)),
    (Likelihood, negative_log_likelihood),
    (Mode, lambda value: GFIPlugin(1.0, value, 0.5 if value == "online" else None)),
    (Penalty, lambda value: GFIPlugin(1.0, penalty=value)),
    (Rows, lambda value: SoftTargets(rows=value)),
    (Rows, lambda value: FitNetsHints(target_layer="hint", source_layer="guided", rows=value)),
    (AnyRows, lambda value: InformationMaximization(rows=value)),
    (AnyRows, lambda value: MinimumClassConfusion(rows=value)),
    (TargetRows, lambda value: ViewConsistency(1.0, rows=value)),
]


@pytest.mark.parametrize(("choice", "take"), TAKEN)
def test_every_value_of_a_type_is_accepted_and_another_is_refused(choice, take):
    for value in get_args(choice):
        take(value)
    with pytest.raises(ValueError, match="Allowed: "):
        take("another")


@pytest.mark.parametrize(
    ("choice", "table"),
    [
        (VariantName, VARIANTS),
        (Estimator, tuple(ESTIMATORS)),  # as imported: tests register others
        (Basis, filter(None, DEFAULTS)),
        (StoredType, DTYPES),
    ],
)
def test_a_type_names_all_of_its_table(choice, table):
    assert get_args(choice) == tuple(table)
