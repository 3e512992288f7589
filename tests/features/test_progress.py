import io

import pytest

from avalanche_cetl.features import progress
from avalanche_cetl.features.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_a_line_at_once_and_then_one_in_a_while(monkeypatch):
    file = io.StringIO()
    with progress_bar(100, True, file) as bar:
        assert "0/100" in file.getvalue() and file.getvalue().endswith("\n")
        for _ in range(50):
            bar.update(2)
    lines = file.getvalue().splitlines()
    assert "100/100" in lines[-1] and len(lines) == 2
    monkeypatch.setattr(progress, "LINES_EVERY", 0.0)
    file = io.StringIO()
    with progress_bar(100, True, file) as bar:
        for _ in range(4):
            bar.update(25)
    assert len(file.getvalue().splitlines()) >= 4
    assert "\r" not in file.getvalue()


def test_a_terminal_gets_a_bar_in_one_line():
    file = Terminal()
    with progress_bar(10, True, file) as bar:
        bar.update(10)
    assert "\r" in file.getvalue() and "10/10" in file.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_nothing_is_written_where_it_is_not_wanted(kind):
    file = kind()
    with progress_bar(10, False, file) as bar:
        bar.update(10)
    assert file.getvalue() == ""
