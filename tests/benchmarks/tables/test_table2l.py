"""Table 2 with more labels and a wider network, on images made here."""

from benchmarks.tables import board, table2
from benchmarks.tables.table2l import BUDGETS, ROWS, TABLE


def test_strengths_are_those_that_table_2_chose(photographs, small_source):
    board.run(TABLE, "smoke", "nowhere", 1, ["baseline", "cetl_gfi", "now"])
    found = TABLE.results("smoke")
    assert found.keys() == {ROWS[row].title for row in ("baseline", "cetl_gfi", "now")}
    assert found["CETL gfi"][0]["settings"]["strength"] == ROWS["cetl_gfi"].strengths[0]
    assert found["CETL as it comes"][0]["settings"]["preset"]["variant"] == "direct"
    assert "over the baseline" in TABLE.render("smoke")


def test_it_has_more_labels_and_a_wider_network_than_table_2():
    larger, own = BUDGETS["cpu"], table2.BUDGETS["cpu"]
    assert (larger.per_class, larger.width) == (5 * own.per_class, 2 * own.width)
