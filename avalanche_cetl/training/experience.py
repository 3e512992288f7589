"""TODO."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def listed_classes(experience: Any) -> Iterator[None]:
    """Show an experience's classes as a list: Avalanche's masked heads cannot index by a set.

    Benchmarks made of data sets give a set, which comes back in the end.
    """
    classes = getattr(experience, "classes_in_this_experience", None)
    if not isinstance(classes, set | frozenset):
        yield
        return
    experience.classes_in_this_experience = sorted(classes)
    try:
        yield
    finally:
        experience.classes_in_this_experience = classes
