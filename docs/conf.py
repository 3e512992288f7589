"""How the documentation is built: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

Nothing is read from a network: no inventories of other projects, no fonts, no formula renderer.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CETL_CACHE", str(HERE / "_build" / "features"))
warnings.filterwarnings("ignore", category=DeprecationWarning)
# What Avalanche warns of where nothing is wrong, and would stand in the output of tutorials.
for message in ("no QP solver found", "No loggers specified", "Plugin .* incompatible callbacks"):
    warnings.filterwarnings("ignore", message=message)

import tutorials  # noqa: E402 - in _ext
from sphinx.ext import autosummary  # noqa: E402

# No sentence ends there.
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "eqs.")

project = "avalanche-cetl"
author = "The avalanche-cetl authors"
copyright = f"{author}, MIT licence"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "measured",
    "names",
]
exclude_patterns = ["_build", "gallery", "auto_gallery/*.ipynb", "auto_gallery/*.py"]
templates_path = ["_templates"]
root_doc = "index"

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    # The other scripts have no prose; "Short scripts" shows them.
    "filename_pattern": tutorials.PATTERN,
    "ignore_pattern": tutorials.OTHERS,
    "within_subsection_order": "tutorials.Order",
    "copyfile_regex": "",
    "download_all_examples": False,
    "min_reported_time": 1,
    "remove_config_comments": True,
    "show_memory": False,
    "plot_gallery": True,
    "reset_modules": ("matplotlib",),
    "show_signature": False,
    "write_computation_times": False,
}
suppress_warnings = ["config.cache"]

html_theme = "pydata_sphinx_theme"
html_title = "avalanche-cetl"
html_static_path = ["_static"]
html_css_files = ["own.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "which_tool": []}
html_theme_options = {
    "logo": {"text": "avalanche-cetl"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "header_links_before_dropdown": 9,
    "navbar_align": "left",
    "search_as_you_type": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


def setup(app):
    """Let links of included files lead to the pages that show their targets."""
    app.connect("include-read", _relink)
    app.connect("autodoc-process-signature", _readable)


def _readable(app, what, name, obj, options, signature, returned):
    """Show functions that are defaults by name: Sphinx cannot read how Python prints them."""
    shown = None if signature is None else re.sub(r"<function (\w+)[^>]*>", r"\1", signature)
    return shown, returned


def _relink(app, path, docname, content):
    content[0] = content[0].replace("](CONTRIBUTING.md)", "](contributing.md)")
    content[0] = content[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
