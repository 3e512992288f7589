"""Training on labels alone by Avalanche's Naive, which other methods add plugins to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torchvision.transforms import v2

from avalanche_cetl import CICNN, ModuleEncoder
from benchmarks.methods.job import AdaptationJob, Job
from benchmarks.where import HERE, Where


class Augmented(SupervisedPlugin):
    """Random views of every mini-batch, for a strategy of Avalanche's own."""

    def __init__(self, augment: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.augment = augment

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Change the mini-batch."""
        strategy.mbatch[0] = self.augment(strategy.mb_x)


class MixedViews(Augmented):
    """Views, of which every mini-batch is mixed with itself, labels too, by torchvision."""

    def __init__(self, augment: Callable[[Tensor], Tensor], classes: int) -> None:
        super().__init__(augment)
        self.mix = v2.RandomChoice([kind(num_classes=classes) for kind in (v2.CutMix, v2.MixUp)])

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Change the mini-batch; its labels become shares of classes, ``(N, K)``."""
        super().before_forward(strategy)
        strategy.mbatch[:2] = self.mix(*strategy.mbatch[:2])


class Plain(Naive):
    """Avalanche's Naive on a device, in its precision and layout."""

    def __init__(self, where: Where, **settings: Any):
        self.where = where
        super().__init__(device=where.device, **settings)

    def forward(self) -> Tensor:
        """Compute logits, in float32."""
        if self.where.channels_last:
            self.mbatch[0] = self.mbatch[0].contiguous(memory_format=torch.channels_last)
        with self.where.casting():
            return super().forward().float()


def cosine(optimizer: torch.optim.Optimizer, epochs: int) -> LRSchedulerPlugin:
    """Let the learning rate fall to zero over the epochs."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    return LRSchedulerPlugin(schedule, step_granularity="epoch")


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
    job: Job, network: nn.Module, passes: int = 1, plugins: Sequence[Any] = (), mixed: bool = False
) -> nn.Module:
    """Train a network by Avalanche's Naive, with plugins, on the labelled images.

    :param mixed: mix the images of a mini-batch, and their labels.
    """
    b = job.budget
    seen = MixedViews(job.augment, job.classes) if mixed else Augmented(job.augment)
    return fit_plainly(
        network,
        job.labelled_stream(),
        passes * b.epochs,
        b.batch,
        b.learning_rate,
        [seen, *plugins],
        job.where,
    )


# ------------------------------------------------------------------ methods


def labels_alone(job: Job) -> nn.Module:
    """Train T2 on the labels alone; in adaptation, on the source's."""
    return naive(job, job.network())


def longer(job: Job) -> nn.Module:
    """Train for three times as many epochs: T2's, T1's and S's passes in CETL's stages."""
    return naive(job, job.network(), passes=3)


def longer_on_mixed(job: Job) -> nn.Module:
    """Train as long with CutMix and MixUp in every mini-batch, labels mixed too."""
    return naive(job, job.network(), passes=3, mixed=True)


def source_of(job: AdaptationJob) -> ModuleEncoder:
    """Train S, a wider CI-CNN, on the source images of a pair."""
    b = job.budget
    torch.manual_seed(job.seed)
    network = CICNN(job.classes, job.shape, width=b.source_width)
    trained = fit_plainly(
        network,
        job.labelled_stream(),
        b.source_epochs,
        b.batch,
        b.learning_rate,
        [Augmented(job.augment)],
        job.where,
    )
    return ModuleEncoder(trained, input_shape=job.shape)


def the_source(job: AdaptationJob) -> nn.Module:
    """Return S itself."""
    return job.source.module.to(job.where.device)


# ------------------------------------------------------------------ what came out


@torch.no_grad()
def logits(network: nn.Module, inputs: Tensor, batch: int = 500) -> Tensor:
    """Compute a network's logits ``(N, K)`` in eval mode, on the CPU."""
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    found = torch.cat([network(part.to(device)).cpu() for part in inputs.split(batch)])
    network.train(training)
    return found


def accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Compute the per cent of inputs whose class is right."""
    right = logits(network, inputs).argmax(1) == labels.cpu()
    return 100 * float(right.float().mean())
