"""Rank correlations by hand, and the results that are kept in the repository."""

import itertools

import pytest

from benchmarks import validators
from benchmarks.data.digits import DIRECTIONS


def test_correlations_and_the_choice_by_hand():
    def run(*pairs):
        return {"rounds": [{"accuracy": a, "score": s} for a, s in pairs]}

    runs = [run((0.1, 1.0), (0.2, 2.0)), run((0.6, 4.0), (0.5, 5.0))]
    found = validators.correlations(runs, "score")
    assert found["rounds"] == pytest.approx(0.0)  # 1 and -1
    assert found["settings"] == pytest.approx(1.0) and found["all"] == pytest.approx(0.8)
    assert (found["chosen"], found["best"]) == (0.5, 0.6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_kept_run_is_found_by_its_settings(direction):
    kept = validators.kept_runs(direction)  # refuses other settings
    cells = list(itertools.product(*validators.GRID.values()))
    assert all(kept.find(*cell) is not None for cell in cells) and len(kept.runs) == len(cells)
