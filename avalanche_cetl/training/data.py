"""Which rows of an experience each stage reads: the one data rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from avalanche_cetl.encoders.features import SOURCE_FEATURES

UNLABELLED = -1
TARGET_DOMAIN = 0
SOURCE_DOMAIN = 1


@dataclass(frozen=True)
class Rows:
    """An experience's data, by use; a row may be in both.

    :ivar target: rows of domain 0, which the reconstruction stages read.
    :ivar labelled: rows with a label >= 0, which classification reads.
    """

    target: Any
    labelled: Any

    @property
    def has_features(self) -> bool:
        """Whether S's features come with the images; see ``with_source_features``."""
        return hasattr(self.target, SOURCE_FEATURES)


def split_rows(dataset: Any) -> Rows:
    """Split an AvalancheDataset by ``domain_labels`` and ``targets``.

    A data set without ``domain_labels`` is all target domain, so that every Avalanche
    benchmark works as it is.
    """
    labels = [int(label) for label in dataset.targets]
    labelled = [i for i, label in enumerate(labels) if label >= 0]
    if hasattr(dataset, "domain_labels"):
        domains = [int(domain) for domain in dataset.domain_labels]
        target = [i for i, domain in enumerate(domains) if domain == TARGET_DOMAIN]
    else:
        target = list(range(len(labels)))

    def pick(indices: list[int]) -> Any:
        return dataset if len(indices) == len(labels) else dataset.subset(indices)

    return Rows(target=pick(target), labelled=pick(labelled))


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
