"""The methods that the demo compares: same target network, same labels, passes and views."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import EWC, LwF, Naive
from torch import Tensor, nn

from avalanche_cetl.demo.digits import CLASSES, SHAPE, Digits, jitter
from avalanche_cetl.demo.settings import LABELS_PER_CLASS, Result, Settings
from avalanche_cetl.demo.stream import accuracy
from avalanche_cetl.encoders import ModuleEncoder, linear_probe
from avalanche_cetl.models import CICNN, CoupledModel
from avalanche_cetl.plugins import History, Progress, SoftTargets
from avalanche_cetl.scenarios import adaptation_benchmark, transfer_benchmark
from avalanche_cetl.training import CETLStrategy

ALONE, COUPLED, BEST = "T2 alone", "CETL gfi", "CETL"
SOFT = "T2, soft targets"
SOURCE_ONLY, SOURCE_FREE = "T2, source only", "CETL, no source image"
SOURCE_ITSELF = "S itself"
TUNES = "tunes S, four times as large"


class Jitter(SupervisedPlugin):
    """Shows a stock strategy random views of the images, as CETLStrategy's ``augment=`` does."""

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Change the images of a mini-batch."""
        strategy.mbatch[0] = jitter(strategy.mb_x)


class Comparison:
    """All methods of the first two blocks on one pair of sets, for one seed.

    :param digits: the data.
    :param seed: of labels kept, initial weights, mini-batches, views and the GFI gate.
    :param settings: see :class:`Settings`.
    :param tick: called once per epoch or round, for a progress bar.
    """

    def __init__(
        self,
        digits: Digits,
        seed: int,
        settings: Settings,
        tick: Callable[[], Any] = lambda: None,
    ):
        self.digits, self.seed, self.settings, self.tick = digits, seed, settings, tick
        source, target = digits.source_train.pair(), digits.target_train.pair()
        tested = digits.source_test.pair()
        self.few = transfer_benchmark(
            target,
            digits.target_test.pair(),
            source_train=source,
            source_test=tested,
            labels_per_class=LABELS_PER_CLASS,
            seed=seed,
        )
        self.unlabelled = adaptation_benchmark(
            source, target, digits.target_test.pair(), source_test=tested, seed=seed
        )
        self.source_free = adaptation_benchmark(None, target, digits.target_test.pair(), seed=seed)
        self.source = self._network(settings.source_width)
        self.models: dict[str, CoupledModel] = {}
        self._source_result: Result | None = None

    # ------------------------------------------------------------------ passes over the data

    @property
    def labelled_epochs(self) -> int:
        """Passes over the few labels that CETL's rounds make: one mini-batch a step."""
        labels = len(self.few.labelled_stream[0].dataset)
        steps = _batches(len(self.digits.target_train), self.settings.batch)
        return self.settings.rounds * steps // _batches(labels, self.settings.batch)

    @property
    def source_epochs(self) -> int:
        """Passes over the source's images that CETL's rounds make without target labels.

        A round lasts until the larger of the two sets has been read.
        """
        sizes = [
            _batches(len(split), self.settings.batch)
            for split in (self.digits.source_train, self.digits.target_train)
        ]
        return self.settings.adaptation_rounds * max(sizes) // sizes[0]

    def total_ticks(self) -> int:
        """Return the number of ticks of a whole run."""
        s = self.settings
        few = s.source_epochs + 5 * self.labelled_epochs + 4 * s.rounds
        return few + self.source_epochs + 2 * s.adaptation_rounds

    # ------------------------------------------------------------------ methods

    def train_source(self) -> Result:
        """Train S on the source set; it stands for a network that somebody else has pre-trained."""
        epochs = self.settings.source_epochs
        seconds = self._fit(
            self.source, self.few.source_stream, epochs, self.settings.fine_tuning_rate
        )
        result = self._result(SOURCE_ITSELF, self.source, seconds, note="no target label")
        self._source_result = result
        return result

    def source_itself(self) -> Result:
        """Return the result of S again, for a second table."""
        return self._source_result or self.train_source()

    def linear_probe(self) -> Result:
        """Fit a logistic regression on S's frozen features of the labelled images."""
        start = time.perf_counter()
        encoder = self._encoder()
        probe = nn.Sequential(encoder, self._probe(encoder))
        seconds = time.perf_counter() - start
        result = self._result("linear probe on S", probe, seconds, note="S runs for each image")
        result.trainable = sum(p.numel() for p in probe[1].parameters())
        return result

    def target_alone(self) -> Result:
        """Train the target network on the few labels alone."""
        network = self._network()
        seconds = self._fit(network, self.few.labelled_stream, self.labelled_epochs)
        return self._result(ALONE, network, seconds)

    def soft_targets(self) -> Result:
        """Train it on the few labels and a probe's soft targets, with plain Avalanche."""
        network, encoder = self._network(), self._encoder()
        plugin = SoftTargets(
            weight=self.settings.soft_weight,
            temperature=2.0,
            source=encoder,
            head=self._probe(encoder),
        )
        seconds = self._fit(
            network, self.few.labelled_stream, self.labelled_epochs, plugins=[plugin]
        )
        return self._result(SOFT, network, seconds, note="of the probe, labelled images alone")

    def fine_tuning(self, name: str) -> Result:
        """Train S further on the few labels: with Naive, or with Avalanche's EWC or LwF."""
        s = self.settings
        network = copy.deepcopy(self.source)
        kinds: dict[str, tuple[type, dict[str, Any]]] = {
            "Naive": (Naive, {}),
            "EWC": (EWC, {"ewc_lambda": s.ewc_lambda}),
            "LwF": (LwF, {"alpha": s.lwf_alpha, "temperature": s.lwf_temperature}),
        }
        kind, extra = kinds[name]
        start = time.perf_counter()
        strategy = self._strategy(kind, network, s.fine_tuning_rate, **extra)
        if name != "Naive":
            # S has learnt the source set already: no epochs, only the method's bookkeeping.
            strategy.train_epochs = 0
            strategy.train(self.few.source_stream)
        self._falling(strategy, self.labelled_epochs)
        strategy.train(self.few.labelled_stream)
        return self._result(name, network, time.perf_counter() - start, note=TUNES)

    def cetl(self, name: str, **settings: Any) -> Result:
        """Train with CETL: all target images, labels of a few."""
        return self._cetl(self.few, self.settings.rounds, name, **settings)

    def source_only(self) -> Result:
        """Train the target network on source images alone, with as many steps as CETL's rounds."""
        network = self._network()
        seconds = self._fit(network, self.unlabelled.source_stream, self.source_epochs)
        return self._result(SOURCE_ONLY, network, seconds)

    def adaptation(self) -> Result:
        """Train with CETL: labels of the source, images of the target."""
        rounds = self.settings.adaptation_rounds
        return self._cetl(self.unlabelled, rounds, BEST)

    def without_source_data(self) -> Result:
        """Train with CETL: S and images of the target are all there is."""
        rounds = self.settings.adaptation_rounds
        return self._cetl(self.source_free, rounds, SOURCE_FREE)

    # ------------------------------------------------------------------ shared pieces

    def _cetl(self, benchmark: Any, rounds: int, name: str, **settings: Any) -> Result:
        model = CoupledModel.build(self._encoder(), self._network(), SHAPE)
        optimizer = torch.optim.Adam(model.parameters(), self.settings.learning_rate)
        history = History()
        strategy = CETLStrategy(
            model=model,
            optimizer=optimizer,
            augment=jitter,
            train_mb_size=self.settings.batch,
            train_epochs=rounds,
            plugins=[history, Progress(self.tick), _cosine(optimizer, rounds)],
            evaluator=None,
            **settings,
        )
        start = time.perf_counter()
        strategy.train(benchmark.train_stream)
        seconds = time.perf_counter() - start
        self.models[name] = model
        trained = model if "variant" in settings else model.target
        result = self._result(name, model.target, seconds, trained)
        result.history = history.table()
        if trained is model:
            result.source_error, result.target_error = self._errors(model)
        return result

    @torch.no_grad()
    def _errors(self, model: CoupledModel) -> tuple[float, float]:
        """Return the errors of T1(S(x)) and T1(T2(x)) over the variance of the pixels."""
        images = self.digits.target_test.images
        model.eval()
        source, own = (
            (made(images) - images).square().mean() / images.var()
            for made in (model.reconstruct_source, model.reconstruct_target)
        )
        return float(source), float(own)

    def _result(
        self,
        name: str,
        network: nn.Module,
        seconds: float,
        trained: nn.Module | None = None,
        note: str = "",
    ) -> Result:
        trainable = sum(p.numel() for p in (trained or network).parameters() if p.requires_grad)
        target = accuracy(network, self.digits.target_test)
        source = accuracy(network, self.digits.source_test)
        return Result(name, target, source, trainable, seconds, note)

    def _network(self, width: float | None = None) -> CICNN:
        torch.manual_seed(self.seed)
        return CICNN(CLASSES, SHAPE, width=width or self.settings.width)

    def _encoder(self) -> ModuleEncoder:
        return ModuleEncoder(self.source, input_shape=SHAPE)

    def _probe(self, encoder: ModuleEncoder) -> nn.Module:
        images, labels = _rows(self.few.labelled_stream)
        return linear_probe(encoder(images), labels)

    def _strategy(
        self,
        kind: type,
        network: nn.Module,
        rate: float,
        plugins: list[Any] | None = None,
        **extra: Any,
    ) -> Any:
        torch.manual_seed(self.seed)  # mini-batches and views are those of no other row
        return kind(
            model=network,
            optimizer=torch.optim.Adam(network.parameters(), rate),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=self.settings.batch,
            plugins=[Progress(self.tick), Jitter(), *(plugins or [])],
            evaluator=None,
            **extra,
        )

    def _falling(self, strategy: Any, epochs: int) -> None:
        """Set epochs, over which the learning rate falls to 0."""
        strategy.train_epochs = epochs
        strategy.plugins.append(_cosine(strategy.optimizer, epochs))

    def _fit(
        self,
        network: nn.Module,
        stream: Any,
        epochs: int,
        rate: float | None = None,
        plugins: list[Any] | None = None,
    ) -> float:
        rate = rate or self.settings.learning_rate
        strategy = self._strategy(Naive, network, rate, plugins)
        self._falling(strategy, epochs)
        start = time.perf_counter()
        strategy.train(stream)
        return time.perf_counter() - start


def _cosine(optimizer: torch.optim.Optimizer, epochs: int) -> LRSchedulerPlugin:
    return LRSchedulerPlugin(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs))


def _batches(rows: int, size: int) -> int:
    return -(-rows // size)


def _rows(stream: Any) -> tuple[Tensor, Tensor]:
    rows = [stream[0].dataset[i] for i in range(len(stream[0].dataset))]
    return torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
