"""The wheel and the sdist, as an index gets them."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=[\"']([^\"']+)")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the texts of both descriptions, the names in both files, and the wheel's files."""
    pytest.importorskip("hatchling", reason="needs the build backend; CI installs it")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    wheel = zipfile.ZipFile(next(out.glob("*.whl")))
    sdist = tarfile.open(next(out.glob("*.tar.gz")))  # noqa: SIM115
    with wheel, sdist:
        names = {
            "wheel": wheel.namelist(),
            "sdist": [name.split("/", 1)[1] for name in sdist.getnames() if "/" in name],
        }
        (about,) = [name for name in names["wheel"] if name.endswith(".dist-info/METADATA")]
        (other,) = [name for name in sdist.getnames() if name.endswith("/PKG-INFO")]
        wheel.extractall(out / "installed")
        texts = {"wheel": wheel.read(about), "sdist": sdist.extractfile(other).read()}
    abouts = {kind: message_from_string(text.decode()) for kind, text in texts.items()}
    return abouts, names, out / "installed"


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_long_description_needs_no_file_beside_it(built, kind):
    text = built[0][kind].get_payload()
    links = [one or two for one, two in LINK.findall(text)]
    assert links and not [link for link in links if not re.match(r"https?://", link)]
    assert text.startswith("# avalanche-cetl") and "<!--" not in text and "```python" in text


def test_an_index_takes_both_files(built):
    pytest.importorskip("twine", reason="needs twine; CI installs it")
    folder = built[2].parent
    files = [str(path) for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert len(files) == 2 and ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_licence_is_named_and_there(built, kind):
    about, names, _ = built
    assert about[kind]["License-Expression"] == "MIT"
    assert about[kind].get_all("License-File") == ["LICENSE"]
    assert any(name.rsplit("/", 1)[-1] == "LICENSE" for name in names[kind])


def test_the_sdist_holds_the_package_its_tests_and_what_they_read(built):
    names = set(built[1]["sdist"])
    tops = {name.split("/")[0] for name in names}
    assert tops == {
        *("avalanche_cetl", "tests", "README.md", "CHANGELOG.md", "CITATION.cff"),
        *("CONTRIBUTING.md", "LICENSE", "hatch_build.py", "pyproject.toml", "PKG-INFO"),
        ".gitignore",
    }
    tests = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert not tests - names


def test_the_wheel_holds_every_file_of_the_package(built):
    package = ROOT / "avalanche_cetl"
    here = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here == {name for name in built[1]["wheel"] if name.startswith("avalanche_cetl/")}
    for name in here:
        assert (built[2] / name).read_bytes() == (ROOT / name).read_bytes()
