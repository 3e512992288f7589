"""Rows by their ids."""

import pytest

from benchmarks.tables.__main__ import TABLES
from benchmarks.tables.rows import Row, by_id


def test_ids_are_words_and_titles_are_told_apart():
    for table in TABLES.values():
        assert all(row.id == key and key.isidentifier() for key, row in table.rows.items())
        assert len({row.title for row in table.rows.values()}) == len(table.rows)


@pytest.mark.parametrize("second", [("a", "other"), ("b", "title")])
def test_two_rows_of_the_same_name_are_refused(second):
    with pytest.raises(ValueError, match="same id or title"):
        by_id(Row("a", "title", None), Row(*second, None))


def test_a_row_takes_its_strength_from_a_row_with_the_same_choice():
    for table in TABLES.values():
        for row in table.rows.values():
            if row.tuned_as is not None:
                other = table.rows[row.tuned_as]
                assert other.strengths == row.strengths
                assert other.tuned_as in (None, other.id)
