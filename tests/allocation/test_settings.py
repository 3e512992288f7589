import pytest

from avalanche_cetl import GFISettings


@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": 2.0},
        {"probability": -0.5},
        {"estimator": "kernel"},
        {"fisher": "exact"},
        {"samples": 1},
        {"refresh_every": 0},
    ],
)
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError):
        GFISettings(**arguments)


@pytest.mark.parametrize("name", ["samples", "refresh_every", "seed"])
def test_numbers_that_are_not_whole_are_refused(name):
    with pytest.raises(TypeError, match=name):
        GFISettings(**{name: 2.5})
