"""Table 3, on images made here."""

from benchmarks.tables import board
from benchmarks.tables.table3 import ROWS, TABLE


def test_a_source_runs_and_its_row_is_filled(photographs, small_source):
    board.run(TABLE, "smoke", "nowhere", 1, ["lite0"])
    assert len(TABLE.render("smoke").split("Not run: ")[1].split("; ")) == len(ROWS) - 1
