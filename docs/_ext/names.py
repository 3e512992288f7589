"""Names in docstrings and signatures lead to the page that describes the object.

Short names, such as ``CETLStrategy``, lead to the public object. Objects of other packages lead to
the documentation of these, at the addresses in ``elsewhere.txt``: no inventory is downloaded.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

_OWN = "avalanche_cetl"


@cache
def elsewhere() -> dict[str, str]:
    """Return the addresses of other packages' objects by name, as ``elsewhere.txt`` has them."""
    text = (Path(__file__).parents[1] / "elsewhere.txt").read_text(encoding="utf-8")
    return dict(line.split() for line in text.splitlines() if line and not line.startswith("#"))


def address(target: str) -> str | None:
    """Return the address of an object of another package; None where it is not in the list.

    Signatures name the module in which an object was made (``torch.nn.modules.module.Module``), or
    none. So its package and its last name count, or its last name alone.
    """
    package, _, rest = target.partition(".")
    for name, place in elsewhere().items():
        same = name.rpartition(".")[2] == target.rpartition(".")[2]
        if same and (not rest or package == name.partition(".")[0]):
            return place
    return None


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Find the one documented object whose last name is the target's; else another package's."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    last = target.rpartition(".")[2]
    objects = env.domains["py"].data["objects"]
    found = [name for name in objects if name.rpartition(".")[2] == last]
    found = [name for name in found if _public(name)] or found
    if target.partition(".")[0] in (last, _OWN) and len(found) == 1:
        entry = objects[found[0]]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)
    place = address(target)
    if place is None:
        return None
    return nodes.reference("", "", content, refuri=place, internal=False)


def _public(name: str) -> bool:
    """Whether a name is an object of a family, not a method."""
    return name.startswith(f"{_OWN}.") and name.count(".") == 2


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen to references that lead nowhere."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
