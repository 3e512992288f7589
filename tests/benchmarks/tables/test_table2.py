"""Table 2 in its smallest form, on images made here."""

from dataclasses import replace

from benchmarks.tables import board
from benchmarks.tables.table2 import ROWS, TABLE


def test_a_row_is_trained_once_and_the_table_comes_from_the_files(
    photographs, small_source, monkeypatch
):
    rows = ["baseline", "probe", "soft_targets", "cetl_fi", "best"]
    board.run(TABLE, "smoke", "nowhere", 1, rows)
    text = TABLE.render("smoke")
    assert all(row.title in text for row in ROWS.values())
    assert len(text.split("Not run: ")[1].split("; ")) == len(ROWS) - len(rows)
    found = TABLE.results("smoke")
    assert found["linear probe on S"][0]["figures"]["accuracy"] > 90
    tuned = {ROWS[row].title for row in ("probe", "soft_targets", "cetl_gfi")}
    assert found.keys() == {ROWS[row].title for row in rows} | {f"{t} (tuning)" for t in tuned}
    monkeypatch.setattr(TABLE, "job", None)
    board.run(TABLE, "smoke", "nowhere", 1, rows)
    assert TABLE.render("smoke") == text


def test_rows_with_mixed_images_run(photographs, small_source, monkeypatch):
    rows = ["features_mixed", "best_mixed_gfi"]
    two = {id: replace(row, strengths=row.strengths[:2]) for id, row in ROWS.items()}
    monkeypatch.setattr(TABLE, "rows", two)
    board.run(TABLE, "smoke", "nowhere", 1, rows)
    assert len(TABLE.render("smoke").split("Not run: ")[1].split("; ")) == len(ROWS) - len(rows)
    assert TABLE.results("smoke")[ROWS[rows[-1]].title][0]["figures"]["source"]
