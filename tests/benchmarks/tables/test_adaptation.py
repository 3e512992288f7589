"""What rows on pairs of domains share, and what a strength is chosen by."""

import json
from dataclasses import replace

from benchmarks.tables import board
from benchmarks.tables.board import Place
from benchmarks.tables.table5 import TABLE

PLACE = Place("table5", "smoke", "nowhere", "cetl_gfi", "MN-US")


def test_the_choice_of_a_strength_reads_no_target_label(pairs, results, monkeypatch):
    rows = {id: replace(row, strengths=row.strengths[:2]) for id, row in TABLE.rows.items()}
    monkeypatch.setattr(TABLE, "rows", rows)

    def scores():
        board.tune(PLACE)
        (path,) = (results / "table5" / "smoke").glob("*tuning*")
        found = json.loads(path.read_text())["figures"]
        path.unlink()
        return found

    first, whole = scores(), pairs.read_pair

    def other_labels(*args):
        pair = whole(*args)
        x, y = pair.target_test
        return replace(pair, target_test=(x, y.roll(3)))

    monkeypatch.setattr(pairs, "read_pair", other_labels)
    pairs.shared_job.cache_clear()
    assert scores() == first


def test_a_source_is_trained_once_for_all_rows_and_strengths_of_a_seed(pairs):
    first = TABLE.job(PLACE, 0, 0.1)
    second = TABLE.job(replace(PLACE, row="hints_e"), 0, 1.0)
    assert first.source is second.source and (first.strength, second.strength) == (0.1, 1.0)
    assert TABLE.job(PLACE, 1, 0.1).source is not first.source
