"""The tutorials among the scripts of the gallery, and their order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

ORDER = (
    "few_labels",
    "soft_targets",
    "unsupervised_adaptation",
    "source_free",
    "own_folders",
    "stream",
)
_SCRIPTS = Path(__file__).parents[1] / "gallery"


def _pattern(names: Iterable[str]) -> str:
    return rf"(^|.*/)({'|'.join(names)})\.py$"


#: Which scripts of the gallery are tutorials, and which are not, as patterns of paths.
PATTERN = _pattern(ORDER)
OTHERS = _pattern(sorted({path.stem for path in _SCRIPTS.glob("*.py")} - set(ORDER)))


class Order:
    """A sort key for sphinx-gallery: a tutorial's place in ``ORDER``; others come last, by name.

    :param folder: that the scripts are in.
    """

    def __init__(self, folder: str):
        self.folder = folder

    def __call__(self, filename: str) -> tuple[int, str]:
        """Return the key of a script."""
        name = filename.removesuffix(".py")
        return (ORDER.index(name) if name in ORDER else len(ORDER)), name
