"""Fig. 2, on images made here."""

from benchmarks.tables import board
from benchmarks.tables.fig2 import TABLE, kept_in


def test_the_figure_is_drawn_from_its_files(photographs, small_source):
    board.run(TABLE, "smoke", "nowhere", 1, ["losses"])
    assert "CIFAR-10-s, losses: L_c is highest in round 1" in TABLE.render("smoke")
    assert kept_in("smoke").stat().st_size > 5000


def test_both_sides_of_the_bound_are_traced(pairs):
    board.run(TABLE, "smoke", "nowhere", 1, ["bound"])
    (document,) = TABLE.results("smoke")["MN-US, bound"].values()
    (traced,) = document["figures"]["rounds"]
    assert traced["Bound"] >= traced["TargetError"] >= 0 and "L_c" in traced
    assert "MN-US, bound: LHS: target error ends at" in TABLE.render("smoke")
