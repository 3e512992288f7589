"""Links that need an address: of the repository, of the site, and of notebooks in Colab.

The addresses are those of ``[tool.avalanche-cetl]`` in ``pyproject.toml``. Where one is empty, the
links that need it are not there. Every script of the gallery is a notebook of the site, in the
folder ``notebooks``; Colab opens those of the branch from which GitHub serves the site.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
COLAB = "https://colab.research.google.com/github"
_CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_ADDRESSES = _CONFIG["tool"]["avalanche-cetl"]
REPOSITORY = _ADDRESSES["repository"].rstrip("/")
#: Of the built pages, with a slash at its end; Read the Docs says where it serves them.
SITE = os.environ.get("READTHEDOCS_CANONICAL_URL") or _ADDRESSES["site"]
SITE = f"{SITE.rstrip('/')}/" if SITE else ""
#: What a notebook runs first where the package is not installed.
INSTALL = (
    f'%pip install -q "avalanche-cetl[demo,offline,onnx] @ git+{REPOSITORY}"' if REPOSITORY else ""
)


def colab(script: str) -> str:
    """Return the address under which Colab opens a script of the gallery; empty: none does."""
    if not REPOSITORY or ".github.io/" not in SITE:
        return ""
    place = REPOSITORY.removeprefix("https://github.com/")
    return f"{COLAB}/{place}/blob/gh-pages/notebooks/{script}.ipynb"


def edit(app: Sphinx, page: str) -> str:
    """Return the address at which a page's source can be edited; empty where it has none."""
    folder, _, name = page.rpartition("/")
    if not REPOSITORY or folder == "reference/generated" or page not in app.env.found_docs:
        return ""
    source = app.env.doc2path(page, base=False)
    if folder == "auto_gallery":
        source = "gallery/GALLERY_HEADER.txt" if name == "index" else f"gallery/{name}.py"
    return f"{REPOSITORY}/edit/main/docs/{source}"


def notebook(script: Path) -> dict[str, Any]:
    """Return a script as a notebook: its docstring, what installs the package, its code."""
    text = script.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    code = text.split('"""', 2)[2].strip()
    cells = [{"cell_type": "markdown", "metadata": {}, "source": docstring}]
    cells += [
        {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": one}
        for one in (INSTALL, code)
        if one
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def _write(app: Sphinx, problem: Exception | None) -> None:
    """Write the notebooks and, where the address is known, the map of the site."""
    if problem is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir) / "notebooks"
    folder.mkdir(exist_ok=True)
    for script in sorted(GALLERY.glob("*.py")):
        made = Path(app.srcdir) / "auto_gallery" / f"{script.stem}.ipynb"
        if made.exists():  # a tutorial, by sphinx-gallery
            shutil.copy(made, folder)
        else:
            text = json.dumps(notebook(script), indent=1)
            (folder / f"{script.stem}.ipynb").write_text(text, encoding="utf-8")
    if SITE:
        pages = sorted(app.env.found_docs - {"404"})
        lines = [f"<url><loc>{escape(SITE)}{page}.html</loc></url>" for page in pages]
        head = '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        text = "\n".join(['<?xml version="1.0" encoding="utf-8"?>', head, *lines, "</urlset>", ""])
        (Path(app.outdir) / "sitemap.xml").write_text(text, encoding="utf-8")


def _offer(app: Sphinx, page: str, content: list[str]) -> None:
    """Offer each script of the gallery as a notebook, and say where the package can be had."""
    folder, _, name = page.rpartition("/")
    if folder == "auto_gallery" and colab(name):
        link = f"`Open it in Colab <{colab(name)}>`__"
        content[0] = re.sub(r"^(=+\n)", rf"\1\n{link}\n", content[0], count=1, flags=re.M)
    if page == "short_scripts":
        content[0] = re.sub(
            r"^```\{literalinclude\} gallery/(\w+)\.py\n.*?^```$",
            lambda found: "\n\n".join([found[0], _notebook_links(found[1])]),
            content[0],
            flags=re.M | re.S,
        )
    if page == "start/install" and REPOSITORY:
        content[0] = content[0].replace(
            "From a copy of the repository:\n\n    pip install .\n",
            f'    pip install "avalanche-cetl @ git+{REPOSITORY}"\n',
        )


def _notebook_links(script: str) -> str:
    links = f'<a href="notebooks/{script}.ipynb" download>As a notebook</a>'
    return f'{links}, <a href="{colab(script)}">in Colab</a>' if colab(script) else links


def _context(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    context["edit_address"] = edit(app, page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen to pages that are read and written."""
    app.connect("source-read", _offer)
    app.connect("html-page-context", _context)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
