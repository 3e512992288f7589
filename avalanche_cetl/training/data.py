"""TrainingData: the rows of the experience in training, by use, and how they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.models.dynamic_modules import DynamicModule
from avalanche.training.plugins.clock import Clock
from torch import Tensor

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.labels import FEATURES_INDEX, split_rows
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.features.attach import features_are_of
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Strategy
from avalanche_cetl.training.checks import check_classes, check_experience, check_finite_images
from avalanche_cetl.training.group import TrainingGroup
from avalanche_cetl.training.networks import Networks


class TrainingData:
    """The rows of the experience in training.

    :param dataset: an AvalancheDataset, its labels and domains by the data rule.
    :param model: that is to be trained on it.
    :param experience: Avalanche's, for errors.
    :param clock: the strategy's, for errors.
    :param taught: whether a plugin teaches T2 classes without labels.
    :ivar rows: those that the reconstruction stages read, and those that classification reads.
    :ivar loader: of the target rows.
    :ivar classes: of the labelled rows, in either domain.
    :raises ValueError: when the data lacks what training needs.
    """

    def __init__(
        self, dataset: Any, model: CoupledModel, experience: Any, clock: Clock, taught: bool
    ):
        self.rows = split_rows(dataset)
        self.number = int(experience.current_experience)
        check_experience(model, self.rows, self.number, taught)
        self.model, self._clock = model, clock
        self.loader: Any = []
        self.classes = tuple(sorted({int(label) for label in self.rows.labelled.targets}))

    @classmethod
    def of(cls, strategy: Strategy, model: CoupledModel) -> TrainingData:
        """Return that of a strategy whose data set has just been adapted."""
        taught = any(getattr(p, "teaches_without_labels", False) for p in strategy.plugins)
        return cls(strategy.adapted_dataset, model, strategy.experience, strategy.clock, taught)

    def check_classes(self) -> None:
        """Raise ValueError when a label has no output of T2, as it is adapted now."""
        _, classes = self.model.target.measure(self.model.input_shape)
        check_classes(self.rows, classes, self.number)

    @property
    def counts(self) -> tuple[int, int]:
        """Return the numbers of target and of labelled rows."""
        return len(self.rows.target), len(self.rows.labelled)

    @property
    def has_features(self) -> bool:
        """Whether S's features come with the images, and there is an S whose they are."""
        return self.rows.has_features and self.model.source is not None

    def sample(self, indices: Sequence[int], device: torch.device) -> Batch:
        """Return target rows, without training augmentation."""
        return self._read(self.rows.target, indices, device)

    def _read(self, dataset: Any, indices: Sequence[int], device: torch.device) -> Batch:
        """Return rows of a data set, without training augmentation."""
        clean = dataset.eval()
        rows = [clean[i] for i in indices]
        images = torch.stack([torch.as_tensor(row[0]) for row in rows]).to(device)
        labels = torch.tensor([int(row[1]) for row in rows], device=device)
        features = None
        if self.has_features:
            features = torch.stack([row[FEATURES_INDEX] for row in rows]).to(device)
        known = getattr(dataset, "targets_task_labels", None)
        tasks = [0 if known is None else int(known[i]) for i in indices]
        check_finite_images(images, self._clock)
        return Batch([images, labels, torch.tensor(tasks, device=device)], features)

    @torch.no_grad()
    def fit_source_statistics(
        self, networks: Networks, batches: Iterable[Batch], group: TrainingGroup
    ) -> None:
        """Standardise S's features by those of the target rows.

        :param networks: that keep the statistics.
        :param batches: this process's rows, in their place.
        :param group: the processes that share the rows.
        """
        features, counted = [], 0
        for batch in batches:
            check_finite_images(batch.images, self._clock)
            features.append(networks.source_features(batch).float())
            counted += batch.counted
        # A small last mini-batch may have left a row here that is another process's.
        networks.model.fit_source_statistics(group.rows(torch.cat(features), counted))

    @torch.no_grad()
    def labelled_features(
        self, source: Encoder, size: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return S's features of the target rows that have a label, and the labels, on the CPU.

        :param source: S; it runs where no features of it are stored.
        :param size: rows that it reads at once.
        :param device: the strategy's, where S is.
        :return: ``(N, dim)`` and ``(N,)``; N is 0 where no target row has a label.
        """
        known = [i for i, label in enumerate(self.rows.target.targets) if int(label) >= 0]
        features, labels = [torch.zeros(0, source.dim)], [torch.zeros(0, dtype=torch.long)]
        for batch, rows in self._seen_by(source, known, size, device):
            features.append(rows.float().cpu())
            labels.append(batch.labels.cpu())
        return torch.cat(features), torch.cat(labels)

    def target_logits(
        self, source: Encoder, size: int, device: torch.device, most: int = 10_000
    ) -> tuple[Tensor, Tensor]:
        """Return S's features and logits of the target rows, on the CPU.

        :param source: S, which has a classifier; it runs where no features of it are stored.
        :param size: rows that it reads at once.
        :param device: the strategy's, where S is.
        :param most: rows that are read, drawn at random, the same each time.
        :return: ``(N, dim)`` and ``(N, K)``.
        """
        count = len(self.rows.target)
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
        features, logits = [], []
        for batch, rows in self._seen_by(source, drawn.sort().values.tolist(), size, device):
            features.append(rows.float().cpu())
            logits.append(source.cheapest_logits(batch.images, rows).float().cpu())
        return torch.cat(features), torch.cat(logits)

    def _seen_by(
        self, source: Encoder, indices: list[int], size: int, device: torch.device
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Read target rows in their order, with S's features of them."""
        stored = self.rows.has_features and features_are_of(self.rows.target, source)
        for start in range(0, len(indices), size):
            batch = self.sample(indices[start : start + size], device)
            given = batch.features if stored else None
            yield batch, source(batch.images) if given is None else given

    @property
    def source_classifies(self) -> bool:
        """Whether there is an S with a classifier of as many classes as T2."""
        source: Any = self.model.source
        _, classes = self.model.target.measure(self.model.input_shape)
        return source is not None and bool(source.num_classes == classes)

    @property
    def no_logits(self) -> str:
        """Return why S has no classifier of as many classes as T2; empty where it has one."""
        source: Any = self.model.source
        if source is None:
            return "There is no source network."
        if source.num_classes is None:
            return str(source.no_logits)
        if self.source_classifies:
            return ""
        _, classes = self.model.target.measure(self.model.input_shape)
        told = f"The source network has {source.num_classes} classes, the target network {classes}."
        if any(isinstance(module, DynamicModule) for module in self.model.target.modules()):
            told += (
                " Its head grows with the classes of labels, and there are none: make it with "
                f"initial_out_features={source.num_classes}."
            )
        return told

    @torch.no_grad()
    def source_accuracy(self, size: int, device: torch.device, most: int = 512) -> float | None:
        """Return how well S itself names the classes of labelled rows, of either domain.

        The mean over classes of the share that S names right, in [0, 1]. None where S gives no
        logits, or not as many as T2.

        :param size: rows that S reads at once.
        :param device: the strategy's, where S is.
        :param most: rows that are read, drawn at random, the same each time.
        """
        source: Any = self.model.source
        dataset = self.rows.labelled
        if not self.source_classifies or not len(dataset):
            return None
        classes = source.num_classes
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        indices = drawn[:most].tolist()
        right, seen = torch.zeros(classes), torch.zeros(classes)
        for start in range(0, len(indices), size):
            batch = self._read(dataset, indices[start : start + size], device)
            named = source.cheapest_logits(batch.images, batch.features).argmax(1)
            labels = batch.labels.cpu()
            seen += torch.bincount(labels, minlength=classes)
            right += torch.bincount(labels[(named == batch.labels).cpu()], minlength=classes)
        return float((right[seen > 0] / seen[seen > 0]).mean())


@contextmanager
def listed_classes(experience: Any, model: CoupledModel) -> Iterator[None]:
    """Show an experience's classes as Avalanche's heads read them, as long as the block lasts.

    They are a list: masked heads cannot index by a set. Where no row has a label they are all
    outputs that T2 has, because heads cannot take that there are none.
    """
    classes = getattr(experience, "classes_in_this_experience", None)
    if classes is None or (len(classes) and not isinstance(classes, set | frozenset)):
        yield
        return
    outputs = () if len(classes) else range(model.target.measure(model.input_shape)[1])
    experience.classes_in_this_experience = sorted(classes or outputs)
    try:
        yield
    finally:
        experience.classes_in_this_experience = classes
