"""Tables of the search for one strength."""

import pytest
from matplotlib.axes import Axes

from benchmarks.continual import natural_table as shown


def run(method, seed, average):
    row = {"stream": "rotated", "method": method, "optimiser": "adam", "seed": seed}
    return row | {"average_accuracy": average}


def test_a_rival_has_its_best_strength_on_the_first_seed_on_all_seeds():
    runs = [
        run(shown.setting(5), 13, 60.0),
        run(shown.setting(5), 14, 70.0),
        run("EWC:strength=100", 13, 50.0),
        run("EWC:strength=1000", 13, 40.0),
        run("EWC:strength=100", 14, 58.0),
        run("EWC:strength=1000", 14, 90.0),
    ]
    table = shown.compared(runs, {"rotated": (13, 14)}, shown.setting(5))
    line = table.splitlines()[2]
    assert "60.0 / 70.0" in line
    assert "50.0 / 58.0 (100)" in line
    assert "+11.0 ± 1.0" in line


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1, 2, 3], [10, 20, 90], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([1, 1, 2], [5, 5, 9], 1.0)],
)
def test_rank_correlation(one, other, expected):
    assert shown.spearman(one, other) == pytest.approx(expected)


def test_the_picture_has_every_stream_and_the_best_of_ewc(tmp_path, monkeypatch):
    runs = [
        run(method, seed, average) | {"stream": stream}
        for stream, seeds in (shown.CHOOSING | shown.READ_ONCE).items()
        for seed in seeds
        for method, average in [
            ("Naive", 20), (shown.setting(5), 60), ("EWC:strength=100", 30),
            ("EWC:strength=100000", 50),
        ]
    ]  # fmt: skip
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda axes, x, y, *_, **__: drawn.append(x) or [])
    shown.draw(runs, tmp_path / "default.png")
    assert (tmp_path / "default.png").exists()
    assert [x for x in drawn if not isinstance(x, list)] == 8 * [20, 50, 60]
