"""Write the figures of README.md and benchmarks/README.md: `python -m benchmarks.render`.

They come from the result files alone. Each block between ``<!-- name -->`` and ``<!-- /name -->``
is made here; no number in them is typed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import markdown
from benchmarks.blocks import BLOCKS
from benchmarks.records import RESULTS, read
from benchmarks.tables import fig2
from benchmarks.tables.__main__ import TABLES
from benchmarks.tables.rows import SCALES

README = Path(__file__).parents[1] / "README.md"
TABLES_PAGE = Path(__file__).parent / "README.md"
TRIED_PAGE = Path(__file__).parent / "TRIED.md"


def table(name: str, tuning: bool = False) -> str:
    """Write one of the paper's tables or its figure, at the scales that were run.

    :param tuning: the rows that only served to choose settings, in place of the others.
    """
    shown = []
    for scale in SCALES:
        if not TABLES[name].results(scale):
            continue
        made = TABLES[name].part(tuning).render(scale)
        if TABLES[name] is fig2.TABLE:
            made += f"\n\n![Fig. 2]({fig2.kept_in(scale).relative_to(TABLES_PAGE.parent)})"
        shown.append(f"Scale `{scale}`:\n\n{made}")
    return "\n\n".join(shown) if shown else "Not run."


def tried() -> str:
    """Write the single runs that showed the way, with their settings."""
    rows = [
        [run["data"], run["method"], run["settings"], f"{run['value']:.{run['digits']}f}"]
        for run in read(RESULTS / "tables" / "tried.json")["runs"]
    ]
    return markdown.table(["data and measure", "method", "settings", "value"], rows)


#: Tables with rows that only served to choose settings.
TUNED = [name for name, table in TABLES.items() if table.part(tuning=True).rows]
PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"headline": BLOCKS["headline"]},
    TABLES_PAGE: {name: partial(table, name) for name in TABLES},
    TRIED_PAGE: {"tried": tried} | {name: partial(table, name, True) for name in TUNED},
}


def filled(page: Path) -> str:
    """Return a page with every block made anew.

    :raises SystemExit: when the page has no place for one.
    """
    text = page.read_text()
    for name, make in PAGES[page].items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        if not block.search(text):
            raise SystemExit(f"{page.name} has no block <!-- {name} --> ... <!-- /{name} -->")
        made = make()
        text = block.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    return text


def main() -> None:
    """Fill in every block."""
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    main()
