"""Tables in Markdown, and what is bold in them."""

from benchmarks import markdown


def test_a_table_has_a_header_and_a_line_for_each_row():
    made = markdown.table(["", "a", "b"], [["x", "1", ""], ["y", "2", "3"]])
    assert made == "| | a | b |\n| --- | --- | --- |\n| x | 1 |  |\n| y | 2 | 3 |"


def test_rows_that_were_not_run_are_named_below_the_table():
    rows = [["x", "1", ""], ["y", "not run", "3"], ["z", "not run", ""]]
    made = markdown.table(["", "a", "paper"], rows, measured=[1])
    assert made.splitlines()[2:] == ["| x | 1 |  |", "", "Not run: y (paper 3); z."]
    assert markdown.table(["", "a", "paper"], rows[1:], measured=[1]).count("not run") == 2


def test_the_best_figure_of_a_row_is_bold():
    """Whoever it belongs to, and all of them where several are best."""
    assert markdown.bold_best(["ours", "a", "b"], [1.0, 3.0, 2.0]) == ["ours", "**a**", "b"]
    assert markdown.bold_best(["a", "b", "c"], [2.0, 2.0, 1.0]) == ["**a**", "**b**", "c"]


def test_what_has_no_figure_is_not_bold():
    assert markdown.bold_best(["fails", "1"], [None, 1.0]) == ["fails", "1"]  # nothing to compare
    assert markdown.bold_best(["fails", "1", "2"], [None, 1.0, 2.0]) == ["fails", "1", "**2**"]


def test_every_group_has_a_best_figure():
    found = markdown.bold_best(["1", "2", "8", "9"], [1.0, 2.0, 8.0, 9.0], ["a", "a", "b", "b"])
    assert found == ["1", "**2**", "8", "**9**"]


def test_the_best_figure_of_a_column_is_bold():
    rows = [["x", "1.0"], ["y", "not run"], ["z", "2.0"]]
    markdown.bold_column(rows, 1, [1.0, None, 2.0])
    assert rows == [["x", "1.0"], ["y", "not run"], ["z", "**2.0**"]]
