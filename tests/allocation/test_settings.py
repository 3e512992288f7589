import pytest

from avalanche_cetl import GFISettings, Quantile
from avalanche_cetl.allocation import WeightPenalty


@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": 2.0},
        {"probability": -0.5},
        {"estimator": "kernel"},
        {"fisher": "exact"},
        {"samples": 1},
        {"refresh_every": 0},
        {"basis": "fourier"},
        {"rank": 0},
    ],
)
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError):
        GFISettings(**arguments)


@pytest.mark.parametrize("name", ["samples", "rank", "refresh_every", "seed"])
def test_numbers_that_are_not_whole_are_refused(name):
    with pytest.raises(TypeError, match=name):
        GFISettings(**{name: 2.5})


def test_the_diagonal_is_described_as_it_was_before_there_were_other_bases():
    assert str(GFISettings(threshold=Quantile(0.8), rank=9)) == (
        "GFISettings(threshold=Quantile(q=0.8), probability=0.9, estimator='gaussian', "
        "fisher='sampled', samples=256, normalize=True, refresh_every=1, seed=0)"
    )
    described = GFISettings().describe()
    assert not {"basis", "rank"} & described.keys()
    assert described["normalize_samples"] is False  # of 0.2, whose result files name it


def test_another_basis_is_described_with_its_rank_and_evaluates_to_the_same():
    settings = GFISettings(basis="kronecker", rank=9, threshold=Quantile(0.8))
    found = settings.describe()
    assert (found["basis"], found["rank"], found["threshold"]) == ("kronecker", 9, {"q": 0.8})
    assert eval(repr(settings)) == settings


@pytest.mark.parametrize(("basis", "gate"), [("diagonal", (0.5, 0.9)), ("kronecker", (0.0, 1.0))])
def test_a_gate_that_is_not_given_is_the_one_of_the_basis(basis, gate):
    settings = GFISettings(basis=basis)
    assert (settings.threshold, settings.probability) == gate
    assert settings.gates == (basis == "diagonal")
    assert GFISettings(basis=basis, threshold=0.3).gates


@pytest.mark.parametrize(
    ("samples", "images", "read"),
    [
        (None, 100, 100),
        (None, 2000, 256),
        (None, 8192, 256),
        (None, 32_000, 1000),
        (None, 60_000, 1875),
        (None, 10**6, 2000),
        (500, 10**6, 500),
        (500, 20, 20),
    ],
)
def test_a_measurement_reads_a_share_of_many_images(samples, images, read):
    assert GFISettings(samples=samples).measured_of(images) == read


@pytest.mark.parametrize(
    ("arguments", "samples"),
    [
        ({}, None),
        ({"basis": "kronecker", "dwa_lambda": 1.0}, 256),
        ({"basis": "diagonal", "dwa_lambda": 1.0}, 256),
        ({"samples": 9}, 9),
    ],
)
def test_the_number_of_images_follows_the_task_where_no_basis_is_named(arguments, samples):
    assert WeightPenalty(**arguments).samples == samples
