"""The documentation: its code runs, its figures have a file, its pages and links are there."""

import ast
import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

import avalanche_cetl

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the pages are in the repository")
BUILT = ("_build", "_ext", "_static", "_templates", "auto_gallery", "gallery", "generated")


def sources(*suffixes):
    """Return the pages that are written by hand."""
    found = (p for p in DOCS.rglob("*") if p.suffix in suffixes)
    return sorted(p for p in found if not set(p.relative_to(DOCS).parts) & set(BUILT))


PAGES = sources(".md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
OUTPUT = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
CODE = [page for page in PAGES if BLOCK.search(page.read_text())]


def module_of(path):
    """Return a script of the documentation as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(page):
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", CODE, ids=named)
def test_all_code_of_a_page_runs_in_its_order(page, few_digits, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CETL_CACHE", str(tmp_path / "features"))
    torch.manual_seed(0)
    names = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, block in enumerate(BLOCK.findall(page.read_text())):
            short = re.sub(r"train_epochs=\d{3}", "train_epochs=20", block)
            exec(compile(short, f"{page.name}[{number}]", "exec"), names)
    # What a page says that it prints: with fewer digits, as here, other numbers.
    printed = re.sub(r"\d+\.\d", "#", capsys.readouterr().out)
    for said in OUTPUT.findall(page.read_text()):
        assert all(re.sub(r"\d+\.\d", "#", line) in printed for line in said.splitlines())


def test_code_is_nowhere_but_in_blocks_that_run():
    others = [
        f"{named(page)}: {fence}"
        for page in PAGES
        for fence in re.findall(r"^\s*```(py\w*|Python)\b", page.read_text(), re.M)
        if fence != "python"
    ]
    indented = [named(p) for p in PAGES if re.search(r"^ +```python", p.read_text(), re.M)]
    assert not others and not indented


def test_imports_of_a_page_are_public_names():
    deep = [
        f"{named(page)}: {node.module}"
        for page in CODE
        for block in BLOCK.findall(page.read_text())
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avalanche_cetl")
        if node.module.count(".") > 1 or any(one.name.startswith("_") for one in node.names)
    ]
    assert not deep


# ------------------------------------------------------------------ figures

FIGURE = re.compile(r"\{measured\}`([^`]*)`")
TABLE = re.compile(r"^```\{result-table\} (.+)$", re.M)


@pytest.fixture(scope="module")
def results():
    return module_of(DOCS / "_ext" / "results.py")


def test_every_figure_has_a_file(results):
    missing = []
    for page in PAGES:
        for text in FIGURE.findall(page.read_text()):
            try:
                assert re.search(r"\d", results.figure(text))
            except (LookupError, OSError) as problem:
                missing.append(f"{named(page)}: {text}: {problem}")
    assert not missing


def test_every_table_is_made_of_result_files(results):
    for page in PAGES:
        for name in TABLE.findall(page.read_text()):
            text = results.table(name)
            assert text.strip() and "\n%" not in text, name
    with pytest.raises(LookupError):
        results.table("no such table")


def test_no_figure_with_an_error_is_typed_by_hand():
    texts = {page: OUTPUT.sub("", page.read_text()) for page in PAGES}
    assert not [named(p) for p, text in texts.items() if re.search(r"\d ± \d|\d\.\d+ ?%", text)]


def test_figures_are_read_as_the_files_have_them(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    folder = tmp_path / "tables" / "t" / "cpu"
    folder.mkdir(parents=True)
    for row, values in {"ours": (70, 72), "plain, twice": (60, 61)}.items():
        for seed, value in enumerate(values):
            text = f'{{"seed": {seed}, "seconds": 5, "figures": {{"accuracy": {value}}}}}'
            (folder / f"{row.replace(' ', '_')}-seed{seed}.json").write_text(text)
    assert results.figure("tables/t > ours") == "71.0 ± 1.0"
    assert results.figure("tables/t > ours - plain, twice") == "+10.5 ± 0.5"
    assert results.figure("tables/t > ours > seconds") == "5"
    (tmp_path / "a.md").write_text(
        "| x | target accuracy % | s |\n| --- | --- | --- |\n| b | 1.3 | 7 |"
    )
    assert results.figure("a.md > b") == "1.3"
    assert results.figure("a.md > b > s") == "7"
    (tmp_path / "a.json").write_text('{"b": [{"c": 1.26}]}')
    assert results.figure("a.json > b > 0 > c > .1f") == "1.3"
    for wrong in ("tables/t > theirs", "a.md > c", "a.json > c", "a.md"):
        with pytest.raises(LookupError):
            results.figure(wrong)


def test_the_picture_of_a_round_is_drawn_by_its_script(tmp_path):
    module = module_of(DOCS / "figures" / "round.py")
    assert module.PICTURE.stat().st_size > 10_000
    assert module.main(tmp_path / "round.png").stat().st_size > 10_000


# ------------------------------------------------------------------ pages and links


def test_every_public_name_is_in_a_family_of_the_reference():
    families = re.findall(
        r"^   (avalanche_cetl\.\w+)$", (DOCS / "reference/index.rst").read_text(), re.M
    )
    listed = {name for family in families for name in importlib.import_module(family).__all__}
    assert set(avalanche_cetl.__all__) <= listed


def tutorials():
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return module_of(DOCS / "_ext" / "tutorials.py")
    finally:
        sys.path.pop(0)


def entries(page):
    """Return the pages that a page's table of contents names, without their suffix."""
    text = page.read_text()
    found = re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.M | re.S)
    found += re.findall(r"^\.\. toctree::\n((?:(?:   .*)?\n)*)", text, re.M)
    lines = [line.strip() for block in found for line in block.splitlines()]
    names = [line for line in lines if line and not line.startswith(":")]
    return [(page.parent / name).resolve() for name in names]


def test_every_page_is_in_a_table_of_contents():
    todo, seen = [DOCS / "index.md"], set()
    while todo:
        page = todo.pop()
        seen.add(page)
        for place in entries(page):
            if place == (DOCS / "auto_gallery" / "index").resolve():
                continue  # made of the tutorials
            files = [place.with_name(place.name + end) for end in (".md", ".rst")]
            (there,) = (file for file in files if file.exists())
            if there not in seen:
                todo.append(there)
    assert seen == set(sources(".md", ".rst")) - {DOCS / "404.md"}


def test_no_link_between_pages_is_broken():
    made = {f"{name}.rst" for name in (*tutorials().ORDER, "index")}
    broken = []
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path = link.split("#")[0]
            if re.match(r"[a-z]+:", link) or not path:
                continue
            place = (page.parent / path).resolve()
            there = place.exists() or (place.parent.name == "auto_gallery" and place.name in made)
            if not there:
                broken.append(f"{named(page)}: {link}")
    for script in (DOCS / "gallery").glob("*.*"):
        for link in re.findall(r":doc:`(?:[^`<]*<)?/([^`>]+)>?`", script.read_text(), re.S):
            if not any((DOCS / f"{link}{end}").exists() for end in (".md", ".rst")):
                broken.append(f"{script.name}: {link}")
    assert not broken


def test_tutorials_have_a_title_and_prose_between_their_cells():
    for name in tutorials().ORDER:
        text = (DOCS / "gallery" / f"{name}.py").read_text()
        title, line = text.splitlines()[1:3]
        assert set(line) == {"="} and len(line) >= len(title), name
        assert text.count("\n# %%\n") >= 3, name
        assert not re.search(r"[^/]\.\./", text)
