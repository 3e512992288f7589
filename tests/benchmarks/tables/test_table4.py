"""Table 4, on images made here."""

import pytest

from benchmarks.tables import board
from benchmarks.tables.table4 import ROWS, TABLE, shares


def test_teacher_and_students_run(photographs):
    rows = ["teacher", "student", "fitnets", "fsp"]
    board.run(TABLE, "smoke", "nowhere", 1, rows)
    assert len(TABLE.render("smoke").split("Not run: ")[1].split("; ")) == len(ROWS) - len(rows)


def test_the_share_of_the_gap_by_hand():
    found = {
        name: {0: {"figures": {"accuracy": value}}}
        for name, value in (("teacher", 80.0), ("student", 70.0), ("FSP", 74.0))
    }
    assert shares(found, ROWS["fsp"]) == [pytest.approx(40.0)]
    assert shares(found, ROWS["fitnets"]) == shares(found, ROWS["cifar100_fsp"]) == []
