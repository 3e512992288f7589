"""What Table 4 says of its rows."""

import pytest

from benchmarks.tables.table4 import ROWS, shares


def test_the_share_of_the_gap_by_hand():
    found = {
        name: {0: {"figures": {"accuracy": value}}}
        for name, value in (("teacher", 80.0), ("student", 70.0), ("FSP", 74.0))
    }
    assert shares(found, ROWS["fsp"]) == [pytest.approx(40.0)]
    assert shares(found, ROWS["fitnets"]) == shares(found, ROWS["cifar100_fsp"]) == []


def test_there_is_no_share_where_the_teacher_is_hardly_better():
    found = {
        name: {0: {"figures": {"accuracy": value}}, 1: {"figures": {"accuracy": value}}}
        for name, value in (("teacher", 70.5), ("student", 70.0), ("FSP", 71.0))
    }
    found["teacher"][1] = {"figures": {"accuracy": 72.0}}
    assert shares(found, ROWS["fsp"]) == [pytest.approx(50.0)]
