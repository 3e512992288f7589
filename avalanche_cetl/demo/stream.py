"""The continual block: permuted digits, and what each method still knows of them in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import EWCPlugin, LwFPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn

from avalanche_cetl.demo.digits import CLASSES, SIZE, Digits, Split
from avalanche_cetl.demo.settings import Settings, StreamResult
from avalanche_cetl.plugins import GFIPlugin, Progress
from avalanche_cetl.scenarios import transfer_benchmark

PIXELS = SIZE * SIZE


class PermutedDigits:
    """A stream of permutations of the source's images, and the methods that learn it.

    :param digits: the data; only the source's images are read.
    :param seed: of permutations, initial weights and mini-batches.
    :param settings: see :class:`Settings`.
    :param tick: called once per epoch, for a progress bar.
    """

    def __init__(
        self,
        digits: Digits,
        seed: int,
        settings: Settings,
        tick: Callable[[], Any] = lambda: None,
    ):
        self.seed, self.settings, self.tick = seed, settings.stream, tick
        generator = torch.Generator().manual_seed(seed)
        orders = [
            torch.randperm(PIXELS, generator=generator) if k else torch.arange(PIXELS)
            for k in range(self.settings.experiences)
        ]
        self.tests = [_permuted(digits.source_test, order) for order in orders]
        trains = [_permuted(digits.source_train, order).pair() for order in orders]
        self.benchmark = transfer_benchmark(trains, [test.pair() for test in self.tests])

    @property
    def plugins(self) -> dict[str, Callable[[], list[Any]]]:
        """Return what makes the plugins of every row, by its name."""
        s = self.settings
        return {
            "Naive": lambda: [],
            "LwF": lambda: [LwFPlugin(s.lwf, 2.0)],
            "EWC": lambda: [EWCPlugin(s.ewc)],
            "EWC, online": lambda: [EWCPlugin(s.ewc_online, mode="online", decay_factor=0.95)],
            "GFIPlugin, diagonal": lambda: [GFIPlugin(s.diagonal, basis="diagonal")],
            "GFIPlugin()": lambda: [GFIPlugin()],
        }

    def total_ticks(self) -> int:
        """Return the number of ticks of all rows."""
        return len(self.plugins) * self.settings.experiences * self.settings.epochs

    def run(self, name: str) -> StreamResult:
        """Train a network on one experience after the other."""
        s = self.settings
        torch.manual_seed(self.seed)
        network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(PIXELS, s.hidden), nn.ReLU(),
            nn.Linear(s.hidden, s.hidden), nn.ReLU(),
            nn.Linear(s.hidden, CLASSES),
        )  # fmt: skip
        strategy = Naive(
            model=network,
            optimizer=torch.optim.Adam(network.parameters(), s.learning_rate),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=s.batch,
            train_epochs=s.epochs,
            plugins=[Progress(self.tick), *self.plugins[name]()],
            evaluator=None,
        )
        averages, first, spent = [], [], 0.0
        for number, experience in enumerate(self.benchmark.train_stream, 1):
            start = time.perf_counter()
            strategy.train(experience)
            spent += time.perf_counter() - start
            found = [accuracy(network, test) for test in self.tests[:number]]
            averages.append(sum(found) / number)
            first.append(found[0])
        return StreamResult(name, averages, first, spent)


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """Return the top-1 accuracy in percent, in eval mode."""
    network.eval()
    return 100 * float((network(split.images).argmax(1) == split.labels).float().mean())


def _permuted(split: Split, order: Tensor) -> Split:
    images = split.images.flatten(1)[:, order].view_as(split.images)
    return Split(images, split.labels)
