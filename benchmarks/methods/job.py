"""What a method takes: data, budget, seed and strength, and where to compute.

Every method is a function of a :class:`Job` and returns the trained network (:data:`Method`).
Methods for labelled images beside S's features take a :class:`TransferJob`, those for a labelled
and an unlabelled domain an :class:`AdaptationJob`; what trains on either takes any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl import (
    CICNN,
    Encoder,
    ModuleEncoder,
    PrecomputedEncoder,
    transfer_benchmark,
    with_source_features,
)
from benchmarks.data.digits import Pair, as_benchmark
from benchmarks.data.draws import Set
from benchmarks.data.sets import Pixels
from benchmarks.data.views import jitter, views
from benchmarks.where import HERE, Where

# ------------------------------------------------------------------ budgets


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a scale may spend.

    :ivar epochs: rounds of CETL, and epochs of the others (what takes more says so).
    :ivar width: of CI-CNN.
    """

    epochs: int
    width: float
    warmup_epochs: int
    learning_rate: float = 1e-3
    batch: int = 32
    gfi_samples: int = 256


@dataclass(frozen=True, kw_only=True)
class TransferBudget(Budget):
    """The same for photographs.

    :ivar per_class: labelled target images of a class.
    :ivar image_size: pixels of S's input.
    :ivar test_per_class: test images of a class; None: all.
    """

    per_class: int
    image_size: int = 128
    validation_per_class: int = 200
    test_per_class: int | None = None

    def unlabelled(self) -> int:
        """Return the number of unlabelled target images of a class, besides."""
        return 0


@dataclass(frozen=True, kw_only=True)
class AdaptationBudget(Budget):
    """The same for pairs of domains.

    :ivar counts: training images of either domain; None: all.
    :ivar test_images: of either test set; None: all.
    """

    counts: dict[str, int] | None
    width: float = 0.25
    source_width: float = 0.5
    source_epochs: int = 15
    warmup_epochs: int = 10
    learning_rate: float = 2e-3
    gfi_samples: int = 64
    input_noise: float = 0.3
    dwa_lambda: float = 0.03
    test_images: int | None = None


def in_half_the_rounds(budget: Any) -> Any:
    """Return the budget with half the rounds: for rounds with two passes over the labels."""
    epochs, warmup_epochs = max(1, budget.epochs // 2), max(1, budget.warmup_epochs // 2)
    return replace(budget, epochs=epochs, warmup_epochs=warmup_epochs)


# ------------------------------------------------------------------ jobs


@dataclass(kw_only=True)
class Job(ABC):
    """One run of a method.

    :ivar strength: the one number of a method that is chosen, such as the weight of a loss.
    """

    budget: Any
    seed: int
    strength: float = 0.0
    where: Where = HERE

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image, ``(C, H, W)``."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Return the number of classes."""

    @property
    @abstractmethod
    def augment(self) -> Callable[[Tensor], Tensor]:
        """Return the random views of training images."""

    @property
    @abstractmethod
    def source(self) -> Encoder:
        """Return S."""

    @abstractmethod
    def benchmark(self) -> Any:
        """Make the Avalanche benchmark that CETL trains on."""

    @abstractmethod
    def labelled_stream(self) -> Any:
        """Make the stream that a network trains on by labels alone."""

    def network(self) -> CICNN:
        """Make a new T2, the same for every method of a seed."""
        torch.manual_seed(self.seed)
        found = CICNN(self.classes, self.shape, width=self.budget.width)
        self.where.place(found)
        return found


@dataclass(kw_only=True)
class TransferJob(Job):
    """Labelled images, unlabelled ones behind them, and S's features of all.

    Neither validation nor test set is in it.

    :ivar train: standardised images, and labels that are -1 where there is none.
    :ivar features: of the same images, ``(N, dim)``.
    :ivar encoder: S itself, which gave the features.
    """

    train: Set
    features: Tensor
    pixels: Pixels
    encoder: Encoder

    def __post_init__(self) -> None:
        device = self.where.device
        self.train = (self.train[0].to(device), self.train[1])
        self.features = self.features.to(device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image, ``(C, H, W)``."""
        return tuple(self.train[0].shape[1:])

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return int(self.train[1].max()) + 1

    @property
    def augment(self) -> Callable[[Tensor], Tensor]:
        """Return the random views of photographs."""
        return views

    @cached_property
    def source(self) -> PrecomputedEncoder:
        """Return S's features, in memory."""
        return PrecomputedEncoder(self.features)

    def benchmark(self) -> Any:
        """Make the training stream with S's features; the test stream holds two of its images."""
        few = (self.train[0][:2], self.train[1][:2])
        plain = transfer_benchmark(self.train, few)
        return with_source_features(plain, self.source, streams=["train"])

    def labelled_stream(self) -> Any:
        """Make the training stream."""
        return self.benchmark().train_stream


@dataclass(kw_only=True)
class AdaptationJob(Job):
    """A labelled and an unlabelled domain. The pair's test sets are for measuring alone.

    :ivar make_source: trains S on the source images when a method first asks, and keeps it.
    :ivar photographs: views flip and shift images, in place of turning them as digits.
    :ivar seen: other random views of training images.
    """

    pair: Pair
    make_source: Callable[[], ModuleEncoder]
    photographs: bool = False
    seen: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image, ``(C, H, W)``."""
        return self.pair.shape

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return self.pair.classes

    @property
    def augment(self) -> Callable[[Tensor], Tensor]:
        """Return the random views of training images."""
        return self.seen or self.weak

    @property
    def weak(self) -> Callable[[Tensor], Tensor]:
        """Return random views that change little."""
        return views if self.photographs else jitter

    @property
    def source(self) -> ModuleEncoder:
        """Return S, trained on the source images."""
        return self.make_source()

    def benchmark(self) -> Any:
        """Make the pair an Avalanche benchmark."""
        return as_benchmark(self.pair)

    def source_free_benchmark(self) -> Any:
        """Make an Avalanche benchmark of the target's images alone."""
        return as_benchmark(self.pair, source_free=True)

    def labelled_stream(self) -> Any:
        """Make the stream of source images."""
        return self.benchmark().source_stream


#: Takes a job (each method its own kind) and returns the trained network.
Method = Callable[[Any], nn.Module]
