"""Ratios of timings by hand."""

from benchmarks.speed.timing import ratios, spread, timed


def test_ratios_are_taken_within_a_round():
    found = ratios({"base": [1.0, 2.0, 4.0], "ours": [2.0, 2.0, 2.0]}, "base")["ours"]
    assert (found["median"], found["lowest"], found["highest"]) == (1.0, 0.5, 2.0)
    assert spread(found) == "1.00 x (0.50 to 2.00)"


def test_jobs_take_turns_and_the_first_round_does_not_count():
    seen = []
    seconds = timed({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2, "cpu")
    assert seen == ["a", "b"] * 3 and {name: len(s) for name, s in seconds.items()} == {
        "a": 2, "b": 2
    }  # fmt: skip
    assert all(took >= 0 for took in (*seconds["a"], *seconds["b"]))
