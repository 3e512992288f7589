"""What the package index is told: the README without what lives beside it, and addresses.

The addresses are those of ``[tool.avalanche-cetl]`` in ``pyproject.toml``. Where they are empty,
links to files of the repository become plain text, and there is no ``Project-URL``.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)]*)\)")
#: What a reader of the index has instead of a copy of the repository.
INSTALL = {
    "From a copy of this repository: `pip install .`": "`pip install avalanche-cetl`",
    'pip install ".[': 'pip install "avalanche-cetl[',
}


class Metadata(MetadataHookInterface):
    """Sets the fields that ``pyproject.toml`` calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme`` and ``urls``."""
        root = Path(self.root)
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        repository, site = (
            project["tool"]["avalanche-cetl"][name].rstrip("/") for name in ("repository", "site")
        )
        text = readme((root / "README.md").read_text(encoding="utf-8"), repository, site)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls(repository, site)


def urls(repository: str, site: str) -> dict[str, str]:
    """Return the links beside the description; none without an address."""
    found = {"Documentation": site} if site else {}
    if repository:
        found |= {
            "Source": repository,
            "Issues": f"{repository}/issues",
            "Changes": f"{repository}/blob/main/CHANGELOG.md",
        }
    return found


def readme(text: str, repository: str, site: str) -> str:
    """Return the README as it is read without the files beside it.

    :param text: with links that are relative to the root of the repository.
    :param repository: its address on GitHub; empty: not known.
    :param site: the address of the built pages; empty: not known.
    """

    def whole(found: re.Match[str]) -> str:
        picture, label, path = found.groups()
        place = ""
        if site and not picture and re.fullmatch(r"docs/(?!gallery/)[\w/]+\.md(#.*)?", path):
            place = f"{site}/{path.removeprefix('docs/').replace('.md', '.html', 1)}"
        elif repository:
            place = f"{repository}/{'raw' if picture else 'blob'}/main/{path}"
        if not place:
            return f"*A picture in the repository: {label}.*" if picture else label
        return f"{picture}[{label}]({place})"

    text = LINK.sub(whole, re.sub(r"<!--.*?-->\n?", "", text))
    for here, there in INSTALL.items():
        text = text.replace(here, there)
    title, line, rest = text.partition("\n")
    return f"{title}{line}{badges(repository, site)}{rest}"


def badges(repository: str, site: str) -> str:
    """Return the badges below the title; none without an address."""
    shields = "https://img.shields.io"
    shown = []
    if repository:
        package = "https://pypi.org/project/avalanche-cetl/"
        shown += [
            f"[![Version]({shields}/pypi/v/avalanche-cetl)]({package})",
            f"[![Licence: MIT]({shields}/badge/licence-MIT-green)]({repository}/blob/main/LICENSE)",
        ]
    if site:
        shown.append(f"[![Documentation]({shields}/badge/documentation-site-blue)]({site}/)")
    return "\n" + " ".join(shown) + "\n" if shown else ""
