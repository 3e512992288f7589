"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

#: Packages that stand between the user's line and the place of a warning.
_BETWEEN = ("avalanche_cetl", "avalanche", "torch", "torchvision")


def warn_caller(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line that is in none of this package, Avalanche and PyTorch.

    A number of levels would not do: the same place is reached from several functions, and from
    PyTorch's, which call ``forward``. Python 3.12 has ``skip_file_prefixes`` for it.

    :param text: of the warning.
    :param category: its class.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in _BETWEEN:
        frame = frame.f_back
    place = frame.f_globals
    warnings.warn_explicit(
        text,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=place.get("__name__"),
        registry=place.setdefault("__warningregistry__", {}),
    )


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
