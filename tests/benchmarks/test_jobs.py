"""Runs side by side."""

from benchmarks.jobs import run_all


def test_every_task_is_run_once_in_its_order():
    seen = []
    run_all(lambda a, b: seen.append((a, b)) or f"{a}{b}", [(1, 2), (3, 4)], processes=1)
    assert seen == [(1, 2), (3, 4)]
