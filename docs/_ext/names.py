"""Short names in docstrings, such as ``CETLStrategy``, lead to the page of the public object."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Find the one documented object whose last name is the target's."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rsplit(".", 1)[-1]
    objects = env.domains["py"].data["objects"]
    found = [name for name in objects if name.rsplit(".", 1)[-1] == last and _public(name)]
    if len(found) != 1:
        return None
    entry = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)


def _public(name: str) -> bool:
    """Whether a name is an object of a family, not a method."""
    return name.startswith("avalanche_cetl.") and name.count(".") == 2


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen to references that lead nowhere."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
