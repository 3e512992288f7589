import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import avalanche_cetl
from avalanche_cetl.__main__ import main
from avalanche_cetl.features import command
from avalanche_cetl.features.extraction import DTYPES

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
OUT = ("--out", "o.safetensors")
COMMAND = 'import runpy; runpy.run_module("avalanche_cetl", run_name="__main__", alter_sys=True)'


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        ("--help", 0, "usage: avalanche-cetl"),
        ("--version", 0, f"avalanche-cetl {avalanche_cetl.__version__}\n"),
        ("demo --help", 0, "usage: avalanche-cetl demo"),
        ("features --help", 0, "usage: avalanche-cetl features"),
        ("", 2, ""),
        ("demo --seed -1", 2, ""),
        ("demo --seed one", 2, ""),
        ("features --encoder e --images i --out features.npy", 2, ""),
        ("features --encoder e --images i --out o.safetensors --batch-size 0", 2, ""),
        ("features --encoder e --images i --out o.safetensors --workers 1.5", 2, ""),
        ("features --encoder e --images i --out o.safetensors --image-size -5", 2, ""),
        ("features --encoder e --images i --out o.safetensors --pool 0", 2, ""),
    ],
)
def test_arguments_are_answered_before_anything_heavy_is_imported(fresh, arguments, code, shown):
    ended = fresh(COMMAND, *arguments.split())
    assert ended.code == code
    assert ended.output.startswith(shown)
    assert ended.errors == "" if code == 0 else "usage: avalanche-cetl" in ended.errors
    assert code == 0 or (arguments.split()[-2:] or ["command"])[0] in ended.errors.splitlines()[-1]
    assert not {"torch", "numpy", "avalanche", "timm"} & ended.modules


def test_the_installed_command_is_main():
    (name,) = PROJECT["scripts"]
    assert name == "avalanche-cetl"
    assert EntryPoint(name, PROJECT["scripts"][name], "console_scripts").load() is main


def test_features_are_computed_without_avalanche(fresh, tmp_path):
    (tmp_path / "images").mkdir()
    wrong = ["--encoder", "resnet9000", "--images", str(tmp_path / "images")]
    ended = fresh(COMMAND, "features", *wrong, "--out", "x.safetensors")
    assert ended.code == 1 and "near it" in ended.errors
    assert "avalanche" not in ended.modules


@pytest.fixture
def read(monkeypatch):
    """Return the arguments of `features` as the command gets them."""

    def run(*arguments):
        seen = []
        monkeypatch.setattr(command, "run", lambda chosen: seen.append(chosen) or 0)
        assert main(["features", "--encoder", "e", "--images", "i", *OUT, *arguments]) == 0
        return seen[0]

    return run


def test_types_of_stored_features_are_those_that_can_be_stored(read, capsys):
    assert {read("--dtype", name).dtype for name in DTYPES} == set(DTYPES)
    with pytest.raises(SystemExit):
        read("--dtype", "float64")
    allowed = capsys.readouterr().err.rpartition("choose from ")[2]
    assert set(allowed.translate(str.maketrans("", "", "' )\n")).split(",")) == set(DTYPES)


def test_numbers_are_read_as_numbers_and_names_as_names(read):
    assert (read("--layer", "-2").layer, read("--layer", "layer3").layer) == (-2, "layer3")
    assert (read("--pool", "2").pool, read("--pool", "max").pool) == (2, "max")
    assert read().layer is None and read().pool is None


def test_a_folder_that_cannot_be_made_is_told_in_options(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"--out {tmp_path / 'file'}: File exists\n"


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_told_in_options(tmp_path, capsys, device):
    wanted = ["--encoder", "test_resnet", "--images", str(tmp_path), "--device", device]
    assert main(["features", *wanted, *OUT]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"--device {device} cannot be used: ") and told.count("\n") == 1
