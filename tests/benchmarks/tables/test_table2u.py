"""Table 2 with unlabelled images, on images made here."""

from benchmarks.tables import board
from benchmarks.tables.table2u import ROWS, TABLE


def test_rows_with_unlabelled_images_run(photographs, small_source):
    rows = ["soft_targets", "hints"]
    board.run(TABLE, "smoke", "nowhere", 1, rows)
    assert len(TABLE.render("smoke").split("Not run: ")[1].split("; ")) == len(ROWS) - len(rows)
