"""What Tables 2 and 3 share: CIFAR-10-s, features of S, and one budget for every method.

Fixed before any test label was read: CIFAR-10-s is a stratified draw of CIFAR-10's training
images with seed 0, the same for all seeds, which vary initialisation, order and views; settings
are chosen on other training images (200 a class); the test is CIFAR-10's whole test set, read
once, after the last epoch. Pixels are standardised channel by channel; every method sees random
flips and shifts of up to 4 pixels, the same batches, Adam with a cosine to zero.

S reads the clean images once, enlarged; its features come out of the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.nn import functional as F

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
from benchmarks.cifar import CLASSES, Set, read_cifar10, stratified

SHAPE = (3, 32, 32)
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

    def part(self, name: str) -> Set:
        """``"train"``, ``"validation"`` or ``"test"``."""
        found: Set = getattr(self, name)
        return found


@lru_cache(maxsize=1)
def read_data(root: str, budget: Budget) -> Data:
    """Read CIFAR-10 and draw from it."""
    everything, test, kind = read_cifar10(root)
    chosen, rest = draw(everything, budget.per_class)
    validation, rest = draw(rest, budget.validation_per_class)
    pixels = Pixels(chosen[0].mean((0, 2, 3)), chosen[0].std((0, 2, 3)))
    if budget.unlabelled():
        more = draw(rest, budget.unlabelled())[0][0]
        hidden = torch.full((len(more),), -1)
        chosen = torch.cat([chosen[0], more]), torch.cat([chosen[1], hidden])
    if budget.test_per_class is not None:
        test = stratified(test, budget.test_per_class, DRAW_SEED)
    sets = [(pixels.standardise(x), y) for x, y in (chosen, validation, test)]
    return Data(*sets, pixels, kind)


def features_of(data: Data, part: str, encoder: Encoder) -> Tensor:
    """Give S's features of a part, ``(N, dim)``, computed once and kept in the feature store."""
    images, labels = data.part(part)
    raw = data.pixels.restore(images)
    plain = transfer_benchmark((raw, labels), (raw[:2], labels[:2]))
    stored = with_source_features(plain, encoder, streams=["train"])
    rows = stored.train_stream[0].dataset.source_features
    return torch.stack([row.float() for row in rows])


def draw(data: Set, per_class: int) -> tuple[Set, Set]:
    """Split a stratified draw off: so many images of every class, and the rest."""
    generator = torch.Generator().manual_seed(DRAW_SEED)
    labels = data[1]
    rows = []
    for label in range(len(CLASSES)):
        found = (labels == label).nonzero().flatten()
        rows.append(found[torch.randperm(len(found), generator=generator)[:per_class]])
    chosen = torch.cat(rows)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return (data[0][chosen], labels[chosen]), (data[0][rest], labels[rest])


def views(x: Tensor) -> Tensor:
    """Flip half of the images ``(N, 3, 32, 32)``, and shift each by up to 4 pixels."""
    count, channels, height, width = x.shape
    flipped = (torch.rand(count, device=x.device) < 0.5).view(-1, 1, 1, 1)
    x = F.pad(torch.where(flipped, x.flip(3), x), (4, 4, 4, 4))
    down, right = torch.randint(0, 9, (2, count, 1), device=x.device)
    rows = (down + torch.arange(height, device=x.device)).view(count, 1, height, 1)
    x = x.gather(2, rows.expand(-1, channels, -1, width + 8))
    columns = (right + torch.arange(width, device=x.device)).view(count, 1, 1, width)
    return x.gather(3, columns.expand(-1, channels, height, -1))


class Views(SupervisedPlugin):
    """The same views for a strategy of Avalanche's own."""

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Change the mini-batch."""
        strategy.mbatch[0] = views(strategy.mb_x)


@dataclass
class Job:
    """One run: what a method may read. Neither validation nor test set is in it."""

    train: Set
    features: Tensor
    budget: Budget
    seed: int
    pixels: Pixels
    encoder: Encoder | None = None
    source: PrecomputedEncoder = field(init=False)

    def __post_init__(self) -> None:
        self.source = PrecomputedEncoder(self.features)  # the store's rows, in memory

    def network(self) -> CICNN:
        """A new T2, the same for every method of a seed."""
        torch.manual_seed(self.seed)
        return CICNN(len(CLASSES), SHAPE, width=self.budget.width)

    def benchmark(self) -> Any:
        """CIFAR-10-s with S's features; the test stream holds two training images."""
        few = (self.train[0][:2], self.train[1][:2])
        plain = transfer_benchmark(self.train, few)
        return with_source_features(plain, self.source, streams=["train"])


Train = Callable[[Job, float], nn.Module]


def naive(job: Job, network: nn.Module, passes: int = 1, plugins: Any = ()) -> nn.Module:
    """Train a network by Avalanche's Naive, with plugins, on the labelled images."""
    b = job.budget
    epochs = passes * b.epochs
    optimizer = torch.optim.Adam(network.parameters(), b.learning_rate)
    Naive(
        model=network,
        optimizer=optimizer,
        train_mb_size=b.batch,
        train_epochs=epochs,
        evaluator=None,
        plugins=[Views(), cosine(optimizer, epochs), *plugins],
    ).train(job.benchmark().train_stream)
    return network


def cosine(optimizer: torch.optim.Optimizer, epochs: int) -> LRSchedulerPlugin:
    """Let the learning rate fall to zero over the epochs."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    return LRSchedulerPlugin(schedule, step_granularity="epoch")


def coupled(job: Job, plugins: Any = (), **settings: Any) -> nn.Module:
    """Train T2 by CETL."""
    b = job.budget
    network = job.network()
    model = CoupledModel.build(job.source, network, SHAPE)
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
        **chosen,
    ).train(job.benchmark().train_stream)
    return network


def probe(features: Tensor, labels: Tensor, strength: float) -> nn.Linear:
    """Fit a logistic regression on standardised features; give it as a linear layer.

    :param features: ``(N, dim)``.
    :param strength: inverse of the l2 penalty's weight, as scikit-learn's ``C``.
    """
    from sklearn.linear_model import LogisticRegression

    mean = features.mean(0)
    std = features.std(0).clamp_min(0.1 * features.std(0).square().mean().sqrt())
    scaled = ((features - mean) / std).double().numpy()
    fitted = LogisticRegression(C=strength, max_iter=300).fit(scaled, labels.numpy())
    layer = nn.Linear(features.shape[1], len(CLASSES))
    with torch.no_grad():
        weight = torch.as_tensor(fitted.coef_, dtype=features.dtype) / std
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.as_tensor(fitted.intercept_, dtype=features.dtype) - weight @ mean)
    return layer.requires_grad_(False)


@torch.no_grad()
def accuracy(network: nn.Module, data: Set, features: Tensor | None = None) -> float:
    """Per cent right, in eval mode; a probe reads the features instead of the images."""
    network.eval()
    inputs = data[0] if features is None else features
    found = torch.cat([network(part).argmax(1) for part in inputs.split(500)])
    return 100 * float((found == data[1]).float().mean())
