"""CI's oldest versions are the lower bounds of pyproject.toml."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = ROOT / ".ci" / "oldest.txt"


def requirements():
    """What the package needs, and its tests, by name; a package's own extras are taken apart."""
    extras = PROJECT["optional-dependencies"]
    waiting, found = [*PROJECT["dependencies"], *extras["test"]], {}
    while waiting:
        one = Requirement(waiting.pop())
        if one.name == PROJECT["name"]:
            waiting += [line for extra in one.extras for line in extras[extra]]
        elif one.marker is None or one.marker.evaluate({"python_version": "3.11"}):
            found[canonicalize_name(one.name)] = one
    return found


@pytest.fixture(scope="module")
def locked():
    if not LOCK.exists():
        pytest.skip("this copy of the tests has no .ci folder")
    lines = [line.split("==") for line in LOCK.read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): Version(version) for name, version in lines}


@pytest.mark.parametrize("name", sorted(requirements()))
def test_the_oldest_environment_has_the_lower_bound(locked, name):
    (bound,) = [one.version for one in requirements()[name].specifier if one.operator == ">="]
    lowest = Version(bound)
    assert locked[name].release[: len(lowest.release)] == lowest.release
