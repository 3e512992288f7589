"""The role ``measured`` and the directive ``result-table``: figures and tables on the pages.

What they may name is said in :mod:`results`. Under the pointer, a figure shows its file.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from results import figure, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole


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
        return [nodes.abbreviation(shown, shown, explanation=place, classes=["measured"])], []


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


def setup(app: Sphinx) -> dict[str, Any]:
    """Register role and directive."""
    app.add_role("measured", Measured())
    app.add_directive("result-table", ResultTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
