"""Pages and their blocks."""

import pytest

from benchmarks import render


@pytest.mark.parametrize("page", render.PAGES, ids=["README", "tables", "tried"])
def test_a_page_says_what_the_result_files_say(page, monkeypatch):
    """No figure is typed by hand: made anew, the page is the same."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **kwargs: None)
    assert render.filled(page) == page.read_text()


def test_a_block_without_a_place_on_the_page_is_an_error(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    monkeypatch.setattr(render, "PAGES", {page: {"a": lambda: "new"}})
    assert render.filled(page) == "before\n<!-- a -->\nnew\n<!-- /a -->\nafter\n"
    monkeypatch.setattr(render, "PAGES", {page: {"b": lambda: "new"}})
    with pytest.raises(SystemExit, match="no block <!-- b -->"):
        render.filled(page)
