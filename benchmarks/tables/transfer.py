"""What Tables 2 to 4 share: one budget for every method.

Every method sees random flips and shifts of up to 4 pixels, the same batches, Adam with a cosine
to zero; the images are those of ``benchmarks/data/sets.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torchvision.transforms import v2

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CoupledModel,
    GFISettings,
    PrecomputedEncoder,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.training.presets import parse_preset
from benchmarks.data.draws import Set
from benchmarks.data.sets import Pixels
from benchmarks.data.views import views
from benchmarks.where import HERE, Where


@dataclass(frozen=True)
class Budget:
    """What a scale may spend.

    :ivar per_class: labelled target images of a class.
    :ivar epochs: rounds of CETL, and epochs of the others (what takes more says so).
    :ivar width: of CI-CNN.
    :ivar image_size: pixels of S's input.
    :ivar test_per_class: test images of a class; None: all.
    """

    per_class: int
    epochs: int
    width: float
    warmup_epochs: int
    learning_rate: float = 1e-3
    batch: int = 32
    image_size: int = 128
    gfi_samples: int = 256
    validation_per_class: int = 200
    test_per_class: int | None = None

    def unlabelled(self) -> int:
        """Give the number of unlabelled target images of a class, besides."""
        return 0


def in_half_the_rounds(budget: Budget) -> Budget:
    """Give the same with half the rounds: for rounds with two passes over the labelled images."""
    epochs, warmup_epochs = max(1, budget.epochs // 2), max(1, budget.warmup_epochs // 2)
    return replace(budget, epochs=epochs, warmup_epochs=warmup_epochs)


def gfi_of(preset: str, budget: Any, seed: int) -> GFISettings:
    """Give a preset's settings of GFI, with the budget's samples and a seed."""
    return replace(parse_preset(preset).gfi, samples=budget.gfi_samples, seed=seed)


class Augmented(SupervisedPlugin):
    """Random views of every mini-batch, for a strategy of Avalanche's own."""

    def __init__(self, augment: Callable[[Tensor], Tensor] = views) -> None:
        super().__init__()
        self.augment = augment

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Change the mini-batch."""
        strategy.mbatch[0] = self.augment(strategy.mb_x)


class MixedViews(Augmented):
    """Views, of which every mini-batch is mixed with itself, labels too, by torchvision."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mix = v2.RandomChoice([kind(num_classes=classes) for kind in (v2.CutMix, v2.MixUp)])

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Change the mini-batch; its labels become shares of classes, ``(N, K)``."""
        super().before_forward(strategy)
        strategy.mbatch[:2] = self.mix(*strategy.mbatch[:2])


@dataclass
class Job:
    """One run: what a method may read. Neither validation nor test set is in it."""

    train: Set
    features: Tensor
    budget: Budget
    seed: int
    pixels: Pixels
    classes: int
    encoder: Encoder | None = None
    where: Where = HERE
    source: PrecomputedEncoder = field(init=False)

    def __post_init__(self) -> None:
        device = self.where.device
        self.train = (self.train[0].to(device), self.train[1])
        self.features = self.features.to(device)
        self.source = PrecomputedEncoder(self.features)  # the store's rows, in memory

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, ``(C, H, W)``."""
        return tuple(self.train[0].shape[1:])

    def network(self) -> CICNN:
        """A new T2, the same for every method of a seed."""
        torch.manual_seed(self.seed)
        return CICNN(self.classes, self.shape, width=self.budget.width)

    def benchmark(self) -> Any:
        """The training images with S's features; the test stream holds two of them."""
        few = (self.train[0][:2], self.train[1][:2])
        plain = transfer_benchmark(self.train, few)
        return with_source_features(plain, self.source, streams=["train"])


Train = Callable[[Job, float], nn.Module]


class Plain(Naive):
    """Avalanche's Naive on a device, in its precision and layout."""

    def __init__(self, where: Where, **settings: Any):
        self.where = where
        super().__init__(device=where.device, **settings)

    def forward(self) -> Tensor:
        """Give logits, in float32."""
        if self.where.channels_last:
            self.mbatch[0] = self.mbatch[0].contiguous(memory_format=torch.channels_last)
        with self.where.casting():
            return super().forward().float()


def fit_plainly(
    network: nn.Module,
    stream: Any,
    epochs: int,
    batch: int,
    learning_rate: float,
    plugins: Sequence[Any],
    where: Where = HERE,
) -> nn.Module:
    """Train a network by Naive and Adam, its rate falling to zero by a cosine."""
    network = where.place(network)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    Plain(
        where,
        model=network,
        optimizer=optimizer,
        train_mb_size=batch,
        train_epochs=epochs,
        evaluator=None,
        plugins=[*plugins[:1], cosine(optimizer, epochs), *plugins[1:]],
    ).train(stream, pin_memory=False)  # the images lie on the device
    return network


def naive(
    job: Job, network: nn.Module, passes: int = 1, plugins: Any = (), mixed: bool = False
) -> nn.Module:
    """Train a network by Avalanche's Naive, with plugins, on the labelled images.

    :param mixed: mix the images of a mini-batch, and their labels.
    """
    b = job.budget
    seen = MixedViews(job.classes) if mixed else Augmented()
    stream = job.benchmark().train_stream
    return fit_plainly(
        network, stream, passes * b.epochs, b.batch, b.learning_rate, [seen, *plugins], job.where
    )


def cosine(optimizer: torch.optim.Optimizer, epochs: int) -> LRSchedulerPlugin:
    """Let the learning rate fall to zero over the epochs."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    return LRSchedulerPlugin(schedule, step_granularity="epoch")


def coupled(job: Job, plugins: Any = (), **settings: Any) -> nn.Module:
    """Train T2 by CETL."""
    b = job.budget
    network = job.network()
    model = CoupledModel.build(job.source, network, job.shape)
    optimizer = torch.optim.Adam(model.parameters(), b.learning_rate)
    chosen: dict[str, Any] = {
        "gfi": GFISettings(samples=b.gfi_samples, seed=job.seed),
        "warmup_epochs": b.warmup_epochs,
        "augment": views,
        **settings,
    }
    CETLStrategy(
        model=model,
        optimizer=optimizer,
        train_mb_size=b.batch,
        train_epochs=b.epochs,
        evaluator=None,
        plugins=[cosine(optimizer, b.epochs), *plugins],
        **job.where.switches(),
        **chosen,
    ).train(job.benchmark().train_stream, pin_memory=False)  # the images lie on the device
    return network


@torch.no_grad()
def accuracy(network: nn.Module, data: Set, features: Tensor | None = None) -> float:
    """Per cent right, in eval mode; a probe reads the features instead of the images."""
    network.eval()
    device = next(network.parameters()).device
    inputs = data[0] if features is None else features
    found = torch.cat([network(part.to(device)).argmax(1).cpu() for part in inputs.split(500)])
    return 100 * float((found == data[1]).float().mean())
