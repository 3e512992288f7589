"""How the documentation is built: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

Nothing is read from a network: no inventories of other projects (``elsewhere.txt`` has the
addresses), no fonts, no formula renderer.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["TQDM_DISABLE"] = "1"  # bars would stand in the output of tutorials, line by line
os.environ.setdefault("CETL_CACHE", str(HERE / "_build" / "features"))
warnings.filterwarnings("ignore", category=DeprecationWarning)
# What Avalanche warns of where nothing is wrong, and would stand in the output of tutorials.
for message in ("no QP solver found", "No loggers specified", "Plugin .* incompatible callbacks"):
    warnings.filterwarnings("ignore", message=message)

import published  # noqa: E402 - in _ext
import tutorials  # noqa: E402 - in _ext
from sphinx.ext import autosummary  # noqa: E402

from avalanche_cetl import __version__  # noqa: E402

# No sentence ends there.
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "eqs.")

project = "avalanche-cetl"
author = "The avalanche-cetl authors"
copyright = f"{author}, MIT licence"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx.ext.githubpages",
    "mathml",
    "measured",
    "names",
    "published",
]
exclude_patterns = ["_build", "gallery", "auto_gallery/*.ipynb", "auto_gallery/*.py"]
templates_path = ["_templates"]
root_doc = "index"

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive = ["math"]  # as on GitHub
html_math_renderer = "mathml"

autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# A reference that leads nowhere is an error. These are types that signatures show, without a page.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"avalanche_cetl\..*\.(_?Function|ForwardFunctions|Inputs|MicroBatch|Pair|Rows)"),
    ("py:class", "DataProfile"),  # of a default argument that is a function
]
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
    "first_notebook_cell": published.INSTALL or None,
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
html_title = f"avalanche-cetl {release}"
html_static_path = ["_static"]
html_baseurl = published.SITE
html_favicon = "_static/logo.svg"
html_css_files = ["own.css"]
html_js_files = [("own.js", {"defer": "defer"})]
html_context = {
    "default_mode": "auto",
    "site": published.SITE,
    "description": "Train a small network with the help of a frozen, larger one, in Avalanche; "
    "and a plugin against forgetting.",
}
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "which_tool": [], "404": []}
html_theme_options = {
    "logo": {
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
        "text": f"avalanche-cetl {release}",
        "alt_text": "Logo",
    },
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "header_links_before_dropdown": 9,
    "navbar_align": "left",
    "search_as_you_type": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc", "edit"],
}
if published.REPOSITORY:
    html_theme_options["github_url"] = published.REPOSITORY


#: Base classes without a page, which say nothing of what a class is.
NO_BASES = {"Described", "Parts", "PenaltyArguments"}
#: Attributes that Avalanche documents, and how objects show themselves; on a page they say nothing.
NO_NEWS = {
    *("PLUGIN_CLASS", "adapted_dataset", "dataloader", "mbatch", "supports_distributed"),
    *("argument", "arguments_shown"),
}


def setup(app):
    """Let links of included files lead to the pages that show their targets."""
    app.connect("include-read", _relink)
    app.connect("source-read", _describe)
    app.connect("autodoc-process-signature", _readable)
    app.connect("autodoc-process-bases", _without_helpers)
    app.connect("autodoc-skip-member", lambda *given: given[2] in NO_NEWS or None)


def _readable(app, what, name, obj, options, signature, returned):
    """Show defaults that are functions or are made by one: Sphinx cannot read what Python prints.

    What a protocol is made with is nobody's business.
    """
    if getattr(obj, "_is_protocol", False):
        return "", returned
    if signature is None:
        return signature, returned
    signature = re.sub(r"<function (\w+)[^>]*>", r"\1", signature)
    for field in dataclasses.fields(obj) if dataclasses.is_dataclass(obj) else ():
        if field.default_factory is not dataclasses.MISSING:
            made = f"{field.default_factory.__name__}()"
            default = rf"(\b{field.name}: .*?) = <factory>"
            signature = re.sub(default, rf"\1 = {made}", signature, count=1)
    return signature, returned


def _without_helpers(app, name, obj, options, bases):
    """Leave out base classes that have no page."""
    bases[:] = [base for base in bases if base.__name__ not in NO_BASES] or [object]


def _describe(app, docname, content):
    """Give the thumbnails of the tutorials a text: sphinx-gallery leaves it empty."""
    if docname == "auto_gallery/index":
        content[0] = re.sub(
            r"(thumb\.png\s+:alt:)(\s*?\n.*?thumbnail-title\">)([^<]+)",
            r"\1 What the tutorial \3 draws\2\3",
            content[0],
            flags=re.S,
        )


def _relink(app, path, docname, content):
    content[0] = content[0].replace("](CONTRIBUTING.md)", "](contributing.md)")
    content[0] = content[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
