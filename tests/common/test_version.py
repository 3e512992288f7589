import runpy
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from avalanche_cetl.common import version

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_version_is_that_of_pyproject():
    assert version.__version__ == tomllib.loads(PROJECT.read_text())["project"]["version"]


def test_a_copy_that_is_not_installed_has_an_unknown_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert runpy.run_path(version.__file__)["__version__"] == "0+unknown"
