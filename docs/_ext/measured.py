"""The role ``measured``, and directives for tables and files of the results.

What they may name is said in :mod:`results`. Under the pointer, a figure shows its file; it leads
to the page that has the table, and at whose end the files can be had.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from docutils import nodes
from results import RESULTS, figure, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

#: By the folder of the results, the page that shows what is in it.
PAGES = {
    "continual": "results/continual",
    "demo": "results/demo",
    "speed": "results/speed",
    "suite": "results/suite",
    "tables": "results/paper",
}


class Measured(SphinxRole):
    """The role ``measured``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the figure, with its file as explanation."""
        try:
            shown = figure(self.text)
        except (LookupError, OSError, StopIteration) as problem:
            message = self.inliner.reporter.error(f"measured: {problem}", line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        place = f"benchmarks/results/{self.text.split('>')[0].strip()}"
        figure_node = nodes.abbreviation(shown, shown, explanation=place, classes=["measured"])
        page, here = PAGES[self.text.split("/")[0].strip()], self.env.docname
        if page == here:
            return [figure_node], []
        address = posixpath.relpath(page, posixpath.dirname(here) or ".") + ".html"
        return [nodes.reference("", "", figure_node, refuri=address, internal=True)], []


class ResultTable(SphinxDirective):
    """The directive ``result-table``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Parse the table where it stands."""
        try:
            text = table(self.arguments[0])
        except (LookupError, OSError) as problem:
            raise self.error(f"result-table: {problem}") from problem
        # Links and pictures are written as seen from the root of the repository.
        text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
        text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"`\1`", text)
        text = text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        return self.parse_text_to_nodes(text)


class ResultFiles(SphinxDirective):
    """The directive ``result-files``: the files of a folder of results, to be downloaded."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Name the files of the folder, without those of its folders."""
        folder = RESULTS / self.arguments[0]
        files = sorted(p for p in folder.glob("*") if p.suffix in (".json", ".md"))
        if not files:
            raise self.error(f"result-files: {folder} has no file")
        place = f"/../benchmarks/results/{self.arguments[0]}"
        links = ", ".join(f"{{download}}`{file.name} <{place}/{file.name}>`" for file in files)
        return self.parse_text_to_nodes(f"Files: {links}.")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register role and directive."""
    app.add_role("measured", Measured())
    app.add_directive("result-table", ResultTable)
    app.add_directive("result-files", ResultFiles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
