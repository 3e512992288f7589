"""Which rows of an experience each stage reads: the one data rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

UNLABELLED = -1
TARGET_DOMAIN = 0
SOURCE_DOMAIN = 1
#: Logit of a class that no row has, in classifiers that are computed from rows.
ABSENT = -30.0

#: The data attribute of S's features, and their place in an item: after image and label.
SOURCE_FEATURES, FEATURES_INDEX = "source_features", 2
#: The data attribute that holds, row by row, the network that the features are of.
SOURCE_ORIGIN = "source_origin"


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


def labelled_rows(batch: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the rows of a mini-batch that have a label; all rows where none has one.

    A memory whose rows a plugin replays may hold rows without a label.

    :param batch: images, labels, and whatever else the loader gives of each row.
    """
    known = batch[1] >= 0
    if known.dim() > 1 or known.all() or not known.any():
        return batch
    return [part[known] for part in batch]


def features_in(dataset: Any, batch: Sequence[Any]) -> torch.Tensor | None:
    """Return S's features in a mini-batch of the data set; None where it has none."""
    return batch[FEATURES_INDEX] if hasattr(dataset, SOURCE_FEATURES) else None
