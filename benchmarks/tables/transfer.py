"""What Tables 2 and 3 share: CIFAR-10-s, features of S, and one budget for every method.

Fixed before any test label was read: CIFAR-10-s is a stratified draw of CIFAR-10's training
images with seed 0, the same for all seeds, which vary initialisation, order and views; settings
are chosen on other training images (200 a class); the test is CIFAR-10's whole test set, read
once, after the last epoch. Pixels are standardised channel by channel; every method sees random
flips and shifts of up to 4 pixels, the same batches, Adam with a cosine to zero.

S reads the clean images once, enlarged; its features come out of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CoupledModel,
    GFISettings,
    PrecomputedEncoder,
    mixed_images,
    paper_benchmark,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.training.presets import parse_preset
from benchmarks.cifar import Set, read_cifar10, stratified
from benchmarks.where import HERE, Where

DRAW_SEED = 0


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


class Pixels(NamedTuple):
    """Mean and deviation of every channel, ``(C,)`` each."""

    mean: Tensor
    std: Tensor

    def standardise(self, x: Tensor) -> Tensor:
        """From [0, 1]."""
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def restore(self, x: Tensor) -> Tensor:
        """Back to [0, 1]; padded pixels, zero when standardised, become the mean."""
        mean, std = (value.to(x).view(-1, 1, 1) for value in self)
        return (x * std + mean).clamp(0, 1)


@dataclass(frozen=True)
class Data:
    """Standardised images and labels of the draw, the validation images and the test set.

    Unlabelled images, with label -1, come behind those of the draw.
    """

    train: Set
    validation: Set
    test: Set
    pixels: Pixels
    kind: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train[1].max()) + 1

    def part(self, name: str) -> Set:
        """``"train"``, ``"validation"`` or ``"test"``."""
        found: Set = getattr(self, name)
        return found


@lru_cache(maxsize=2)
def read_data(root: str, budget: Budget, mixed: int = 0, name: str = "CIFAR-10") -> Data:
    """Read a data set and draw from it.

    :param mixed: unlabelled mixed images for every training image, behind all others.
    :param name: ``"CIFAR-10"``, or another of :func:`paper_benchmark`'s.
    :raises FileNotFoundError: when it is not there.
    """
    everything, test, kind = read_set(name, root)
    chosen, rest = draw(everything, budget.per_class)
    validation, rest = draw(rest, budget.validation_per_class)
    pixels = Pixels(chosen[0].mean((0, 2, 3)), chosen[0].std((0, 2, 3)))
    if budget.unlabelled():
        more = draw(rest, budget.unlabelled())[0][0]
        hidden = torch.full((len(more),), -1)
        chosen = torch.cat([chosen[0], more]), torch.cat([chosen[1], hidden])
    if mixed:
        more = mixed_images(chosen[0], mixed * len(chosen[0]), DRAW_SEED)
        hidden = torch.full((len(more),), -1)
        chosen = torch.cat([chosen[0], more]), torch.cat([chosen[1], hidden])
    if budget.test_per_class is not None:
        test = stratified(test, budget.test_per_class, DRAW_SEED)
    sets = [(pixels.standardise(x), y) for x, y in (chosen, validation, test)]
    return Data(*sets, pixels, f"{name} ({kind})")


def read_set(name: str, root: str) -> tuple[Set, Set, str]:
    """Read training and test set, images in [0, 1], and say what was found.

    :param name: ``"CIFAR-10"``, or another of :func:`paper_benchmark`'s.
    :raises FileNotFoundError: when it is not there.
    """
    if name == "CIFAR-10":
        return read_cifar10(root)
    found = paper_benchmark(name, root)
    datasets = [stream[0].dataset.eval() for stream in (found.train_stream, found.test_stream)]
    sets = [
        (torch.stack([row[0] for row in dataset]), torch.tensor(list(dataset.targets)))
        for dataset in datasets
    ]
    return sets[0], sets[1], "original"


def features_of(data: Data, part: str, encoder: Encoder, where: Where = HERE) -> Tensor:
    """Give S's features of a part, ``(N, dim)``, computed once and kept in the feature store."""
    images, labels = data.part(part)
    raw = data.pixels.restore(images)
    plain = transfer_benchmark((raw, labels), (raw[:2], labels[:2]))
    stored = with_source_features(plain, encoder, streams=["train"], device=where.device)
    rows = stored.train_stream[0].dataset.source_features
    return torch.stack([row.float() for row in rows])


def draw(data: Set, per_class: int) -> tuple[Set, Set]:
    """Split a stratified draw off: so many images of every class, and the rest."""
    generator = torch.Generator().manual_seed(DRAW_SEED)
    labels = data[1]
    rows = []
    for label in labels.unique():
        found = (labels == label).nonzero().flatten()
        rows.append(found[torch.randperm(len(found), generator=generator)[:per_class]])
    chosen = torch.cat(rows)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return (data[0][chosen], labels[chosen]), (data[0][rest], labels[rest])


def views(x: Tensor) -> Tensor:
    """Flip half of the images ``(N, C, H, W)``, and shift each by up to 4 pixels."""
    count, channels, height, width = x.shape
    flipped = (torch.rand(count, device=x.device) < 0.5).view(-1, 1, 1, 1)
    x = F.pad(torch.where(flipped, x.flip(3), x), (4, 4, 4, 4))
    down, right = torch.randint(0, 9, (2, count, 1), device=x.device)
    rows = (down + torch.arange(height, device=x.device)).view(count, 1, height, 1)
    x = x.gather(2, rows.expand(-1, channels, -1, width + 8))
    columns = (right + torch.arange(width, device=x.device)).view(count, 1, 1, width)
    return x.gather(3, columns.expand(-1, channels, height, -1))


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
