import io

import pytest
import torch
from stores import ONE, Moments, contents, extract, images

from avalanche_cetl.features import extraction
from avalanche_cetl.features.extraction import Extraction, progress_bar
from avalanche_cetl.features.store import stored_features
from avalanche_cetl.features.views import SeededView

pytestmark = pytest.mark.usefixtures("small_shards")


def test_features_that_are_not_finite_or_too_large_name_their_row(tmp_path):
    x = images()
    x[13] = float("nan")
    with pytest.raises(ValueError, match="row 13 are not finite"):
        extract(tmp_path, x=x)
    x[13] = 1e6
    with pytest.raises(ValueError, match=r"row 13 are too large for float16.*float32"):
        extract(tmp_path, x=x, dtype="float16")
    extract(tmp_path, x=x)


def test_images_of_several_shapes_and_no_tensors_are_refused(tmp_path):
    mixed = SeededView([(torch.rand(1, 4, 4), 0), (torch.rand(1, 5, 4), 0)], 0, 0)
    with pytest.raises(ValueError, match="several shapes"):
        stored_features(tmp_path, Moments(), mixed, "float32", Extraction(), ONE)
    with pytest.raises(TypeError, match="row 0 is a str"):
        stored_features(
            tmp_path, Moments(), SeededView([("a", 0)], 0, 0), "float32", Extraction(), ONE
        )
    with pytest.raises(ValueError, match="bfloat"):
        extract(tmp_path, dtype="bfloat16")
    for wrong in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match="has to be"):
            Extraction(**wrong)


def test_worker_processes_change_nothing(tmp_path):
    extract(tmp_path / "none")
    extract(tmp_path / "two", num_workers=2)
    assert contents(tmp_path / "none") == contents(tmp_path / "two")


def test_the_global_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    extract(tmp_path)
    assert torch.equal(torch.rand(3), wanted)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("every", [0.0, 30.0])
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_file_gets_lines_now_and_then_and_a_terminal_one_that_moves(monkeypatch, kind, every):
    monkeypatch.setattr(extraction, "LINES_EVERY", every)
    monkeypatch.setattr("sys.stderr", file := kind())
    with progress_bar(100, True) as bar:
        assert "0/100" in file.getvalue()
        for _ in range(4):
            bar.update(25)
    assert "100/100" in file.getvalue()
    assert ("\r" in file.getvalue()) == (kind is Terminal)
    if kind is not Terminal:
        assert file.getvalue().endswith("\n")
        assert (len(file.getvalue().splitlines()) == 2) == (every > 0)


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_nothing_is_written_where_it_is_not_wanted(monkeypatch, kind):
    monkeypatch.setattr("sys.stderr", file := kind())
    with progress_bar(10, False) as bar:
        bar.update(10)
    assert file.getvalue() == ""
