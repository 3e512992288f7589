"""What appears once the addresses of ``[tool.avalanche-cetl]`` are known, here made up."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from partners import Partners

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY, SITE = "https://github.com/someone/something", "https://someone.github.io/something/"
COLAB = "https://colab.research.google.com/github/someone/something/blob/gh-pages/notebooks"
BUILDS = ("sphinx_gallery", "myst_parser", "pydata_sphinx_theme", "sphinx_copybutton")
pytestmark = pytest.mark.slow
ADDRESSES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["avalanche-cetl"]


def project(folder, **addresses):
    """Write what a build reads of the root of the repository, with other addresses."""
    text = (ROOT / "pyproject.toml").read_text()
    for name, address in addresses.items():
        text, count = re.subn(rf'^{name} = ".*?"', f'{name} = "{address}"', text, flags=re.M)
        assert count == 1
    (folder / "pyproject.toml").write_text(text)
    for name in ("README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def metadata(folder):
    pytest.importorskip("hatchling", reason="needs the build backend; CI installs it")
    command = [sys.executable, "-m", "hatchling", "metadata"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def test_the_package_page_has_whole_links_where_the_addresses_are_known(tmp_path):
    found = metadata(project(tmp_path, repository=REPOSITORY, site=SITE))
    assert found["urls"]["Source"] == REPOSITORY
    assert found["urls"]["Documentation"] == SITE.rstrip("/")
    text = found["readme"]["text"]
    for link in (
        f"]({REPOSITORY}/raw/main/benchmarks/results/continual/default.png)",
        f"]({SITE}start/from_avalanche.html#ewcplugin-becomes-gfiplugin)",
        f"]({REPOSITORY}/blob/main/docs/gallery/README.md)",
        "img.shields.io/pypi/v/avalanche-cetl",
        "`pip install avalanche-cetl`",
    ):
        assert link in text
    assert not re.search(r"\]\((?!https://)", text)


def test_the_package_page_has_no_link_without_an_address(tmp_path):
    found = metadata(project(tmp_path, repository="", site=""))
    assert not found.get("urls") and "img.shields.io" not in found["readme"]["text"]


def test_the_citation_names_the_same_repository():
    text = (ROOT / "CITATION.cff").read_text()
    named = re.search(r"^repository-code: (\S+)$", text, re.M)
    assert (named[1] if named else "") == ADDRESSES["repository"]


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from sphinx.cmd.build import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build a few pages with the addresses; return the folder."""
    if not DOCS.is_dir() or not all(map(find_spec, BUILDS)):
        pytest.skip("needs the pages, and the extra `docs`; CI installs it")
    root = project(tmp_path_factory.mktemp("project"), repository=REPOSITORY, site=SITE)
    docs = root / "docs"
    docs.mkdir()
    for name in ("_ext", "_static", "_templates", "gallery"):
        shutil.copytree(DOCS / name, docs / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf.py", "elsewhere.txt", "short_scripts.md", "404.md"):
        shutil.copy(DOCS / name, docs)
    (docs / "start").mkdir()
    shutil.copy(DOCS / "start" / "install.md", docs / "start")
    pages = "auto_gallery/index\nshort_scripts\nstart/install"
    (docs / "index.md").write_text(f"# Pages\n\n```{{toctree}}\n{pages}\n```\n")
    options = ["-q", "-D", "sphinx_gallery_conf.plot_gallery=0", "-D", "nitpicky=0"]
    builder = Partners(root / "builder")
    builder.start(BUILD, ROOT, *options, docs, root / "html", READTHEDOCS_CANONICAL_URL="")
    builder.succeed()
    return root / "html"


@pytest.mark.parametrize(
    ("page", "links"),
    [
        (
            "auto_gallery/few_labels",
            [f"{COLAB}/few_labels.ipynb", f"{REPOSITORY}/edit/main/docs/gallery/few_labels.py"],
        ),
        (
            "short_scripts",
            [f"{COLAB}/hints.ipynb", f"{REPOSITORY}/edit/main/docs/short_scripts.md", REPOSITORY],
        ),
        ("start/install", [f"{REPOSITORY}/edit/main/docs/start/install.md"]),
    ],
)
def test_a_page_links_its_source_and_its_notebook(site, page, links):
    text = (site / f"{page}.html").read_text()
    assert not [link for link in links if f'href="{link}"' not in text]
    assert f'<meta property="og:url" content="{SITE}{page}.html">' in text
    assert f'<meta property="og:image" content="{SITE}_images/' in text


def test_the_page_that_is_not_found_starts_its_links_at_the_site(site):
    assert f'<base href="{SITE}">' in (site / "404.html").read_text()


def test_a_page_says_from_where_the_package_is_installed(site):
    assert f"git+{REPOSITORY}" in (site / "start" / "install.html").read_text()


def test_the_map_names_the_pages(site):
    assert f"<loc>{SITE}short_scripts.html</loc>" in (site / "sitemap.xml").read_text()


def test_each_script_is_a_notebook_that_installs_the_package_first(site):
    names = {path.stem for path in (DOCS / "gallery").glob("*.py")}
    assert {path.stem for path in (site / "notebooks").iterdir()} == names
    for name in names:
        cells = json.loads((site / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        assert code[0].startswith("%pip install") and REPOSITORY in code[0]
        compile("\n".join(code[1:]), name, "exec")
        assert 'if __name__ == "__main__":' in "\n".join(code)
