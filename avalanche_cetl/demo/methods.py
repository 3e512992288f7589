"""The methods that the demo compares: same target network, same labels, same passes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import EWC, LwF, Naive
from torch import Tensor, nn
from torchvision.transforms.v2 import RandomAffine

from avalanche_cetl.demo.digits import CLASSES, SHAPE, Digits, Split
from avalanche_cetl.demo.settings import LABELS_PER_CLASS, Result, Settings
from avalanche_cetl.encoders import ModuleEncoder
from avalanche_cetl.models import CICNN, CoupledModel
from avalanche_cetl.plugins import DecoderHints, History, Progress
from avalanche_cetl.scenarios import adaptation_benchmark, transfer_benchmark
from avalanche_cetl.training import CETLStrategy


@torch.no_grad()
def accuracy(network: nn.Module, split: Split) -> float:
    """Return the top-1 accuracy in percent, in eval mode."""
    network.eval()
    return 100 * float((network(split.images).argmax(1) == split.labels).float().mean())


class Comparison:
    """All methods of the demo on one pair of sets, for one seed.

    :param digits: the data.
    :param seed: of labels kept, initial weights, mini-batches and the GFI gate.
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
        self.few = transfer_benchmark(
            digits.target_train.pair(),
            digits.target_test.pair(),
            source_train=digits.source_train.pair(),
            source_test=digits.source_test.pair(),
            labels_per_class=LABELS_PER_CLASS,
            seed=seed,
        )
        self.unsupervised = adaptation_benchmark(
            digits.source_train.pair(),
            digits.target_train.pair(),
            digits.target_test.pair(),
            source_test=digits.source_test.pair(),
            seed=seed,
        )
        self.source = self._network(settings.source_width)
        self.models: dict[str, CoupledModel] = {}
        self._warm: tuple[CoupledModel, float] | None = None

    # ------------------------------------------------------------------ passes over the data

    @property
    def labelled_epochs(self) -> int:
        """Passes over the few labels that CETL's rounds make: one mini-batch a step."""
        labels = len(self.few.labelled_stream[0].dataset)
        steps = _batches(len(self.digits.target_train), self.settings.batch)
        return self.settings.rounds * steps // _batches(labels, self.settings.batch)

    def total_ticks(self) -> int:
        """Return the number of ticks of a whole run."""
        s = self.settings
        fine_tuning = 4 * self.labelled_epochs
        cetl = 3 * (s.rounds + s.adaptation_rounds)
        return s.source_epochs + fine_tuning + cetl + s.adaptation_rounds

    # ------------------------------------------------------------------ methods

    def train_source(self) -> Result:
        """Train S on the source set, with random rotations, shifts and scales.

        S stands for a network that somebody else has pre-trained well. It is the only training
        with augmented images.
        """
        benchmark = transfer_benchmark(
            self.digits.source_train.pair(),
            self.digits.source_test.pair(),
            train_transform=RandomAffine(15, translate=(0.1, 0.1), scale=(0.85, 1.15)),
        )
        epochs, rate = self.settings.source_epochs, self.settings.fine_tuning_rate
        strategy = self._strategy(Naive, self.source, rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(strategy.optimizer, epochs)
        strategy.plugins.append(LRSchedulerPlugin(schedule))
        strategy.train_epochs = epochs
        seconds = _train(strategy, benchmark.train_stream)
        return self._result("S on its own (no target label)", self.source, seconds)

    def linear_probe(self) -> Result:
        """Fit a logistic regression on S's frozen features of the labelled images."""
        from sklearn.linear_model import LogisticRegression

        encoder = self._encoder()
        start = time.perf_counter()
        images, labels = _rows(self.few.labelled_stream)
        probe = LogisticRegression(max_iter=2000).fit(encoder(images).numpy(), labels.numpy())
        seconds = time.perf_counter() - start
        target, source = (
            100 * float(probe.score(encoder(split.images).numpy(), split.labels.numpy()))
            for split in (self.digits.target_test, self.digits.source_test)
        )
        return Result("linear probe on S", target, source, probe.coef_.size + CLASSES, seconds)

    def target_alone(self) -> Result:
        """Train the target network on the few labels alone."""
        network = self._network()
        seconds = self._fit(network, self.few.labelled_stream, self.labelled_epochs)
        return self._result("target network alone", network, seconds)

    def fine_tuning(self, name: str) -> Result:
        """Train S further on the few labels: with Naive, or with Avalanche's EWC or LwF."""
        s = self.settings
        network = copy.deepcopy(self.source)
        kinds: dict[str, tuple[type, dict[str, float]]] = {
            "Naive": (Naive, {}),
            "EWC": (EWC, {"ewc_lambda": s.ewc_lambda}),
            "LwF": (LwF, {"alpha": s.lwf_alpha, "temperature": s.lwf_temperature}),
        }
        kind, extra = kinds[name]
        strategy = self._strategy(kind, network, s.fine_tuning_rate, **extra)
        if name != "Naive":
            # S has learnt the source set already: no epochs, only the method's bookkeeping.
            strategy.train_epochs = 0
            _train(strategy, self.few.source_stream)
        strategy.train_epochs = self.labelled_epochs
        seconds = _train(strategy, self.few.labelled_stream)
        return self._result(f"{name}, fine-tuning S", network, seconds)

    def cetl(self, variant: str) -> Result:
        """Train with CETL: reconstruction on all target images, labels of a few."""
        return self._cetl(variant, self.few, self.settings.rounds, f"CETL {variant}")

    def source_only(self) -> Result:
        """Train the target network on source images alone, as often as CETL reads them."""
        network = self._network()
        seconds = self._fit(
            network, self.unsupervised.source_stream, self.settings.adaptation_rounds
        )
        return self._result("source only", network, seconds)

    def cetl_unsupervised(self, variant: str) -> Result:
        """Train with CETL without target labels: stage 3 reads source images."""
        name = f"CETL {variant}, unsupervised"
        return self._cetl(variant, self.unsupervised, self.settings.adaptation_rounds, name)

    # ------------------------------------------------------------------ shared pieces

    def _cetl(self, variant: str, benchmark: Any, rounds: int, name: str) -> Result:
        warm, warming = self._warmed_up()
        model = copy.deepcopy(warm)
        history = History()
        strategy = self._coupled(model, variant, [history, Progress(self.tick)])
        strategy.train_epochs = rounds
        torch.manual_seed(self.seed)
        seconds = warming + _train(strategy, benchmark.train_stream)
        self.models[name] = model
        result = self._result(name, model.target, seconds, model)
        result.history = history.table()
        images = self.digits.target_test.images
        model.eval()
        with torch.no_grad():
            variance = images.var()
            source = (model.reconstruct_source(images) - images).square().mean()
            own = (model.reconstruct_target(images) - images).square().mean()
        result.source_error, result.target_error = float(source / variance), float(own / variance)
        return result

    def _warmed_up(self) -> tuple[CoupledModel, float]:
        """Return a coupled model after stage 1's warm-up, and the seconds that it took.

        It is trained once and then copied: both blocks have the same S, target images and
        initial weights, so the warm-up is the same for all variants.
        """
        if self._warm is None:
            model = CoupledModel.build(self._encoder(), self._network(), SHAPE)
            strategy = self._coupled(model, "e", [])
            strategy.warmup_epochs = self.settings.warmup_epochs
            self._warm = model, _train(strategy, self.few.train_stream)
        return self._warm

    def _coupled(self, model: CoupledModel, variant: str, plugins: list[Any]) -> CETLStrategy:
        s = self.settings
        groups: list[dict[str, Any]] = [
            {"params": list(model.decoder_parameters().values()), "lr": s.decoder_learning_rate},
            {"params": list(model.target_parameters().values())},
        ]
        return CETLStrategy(
            model=model,
            optimizer=torch.optim.Adam(groups, s.learning_rate),
            variant=variant,
            dwa_lambda=s.dwa_lambda,
            gfi=s.gfi,
            alternate="iteration",
            lr_factors=(1.0, 1.0),  # T1 has a rate of its own
            warmup_epochs=0,
            train_mb_size=s.batch,
            train_epochs=0,
            plugins=[*plugins, DecoderHints(s.match_hidden)],
            evaluator=None,
        )

    def _result(
        self, name: str, network: nn.Module, seconds: float, whole: nn.Module | None = None
    ) -> Result:
        trainable = sum(p.numel() for p in (whole or network).parameters() if p.requires_grad)
        target = accuracy(network, self.digits.target_test)
        source = accuracy(network, self.digits.source_test)
        return Result(name, target, source, trainable, seconds)

    def _network(self, width: float | None = None) -> CICNN:
        torch.manual_seed(self.seed)
        return CICNN(CLASSES, SHAPE, width=width or self.settings.width)

    def _encoder(self) -> ModuleEncoder:
        return ModuleEncoder(self.source, input_shape=SHAPE)

    def _strategy(self, kind: type, network: nn.Module, rate: float, **extra: Any) -> Any:
        return kind(
            model=network,
            optimizer=torch.optim.Adam(network.parameters(), rate),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=self.settings.batch,
            plugins=[Progress(self.tick)],
            evaluator=None,
            **extra,
        )

    def _fit(self, network: nn.Module, stream: Any, epochs: int) -> float:
        strategy = self._strategy(Naive, network, self.settings.learning_rate)
        strategy.train_epochs = epochs
        return _train(strategy, stream)


def _train(strategy: Any, stream: Any) -> float:
    start = time.perf_counter()
    strategy.train(stream)
    return time.perf_counter() - start


def _batches(rows: int, size: int) -> int:
    return -(-rows // size)


def _rows(stream: Any) -> tuple[Tensor, Tensor]:
    rows = [stream[0].dataset[i] for i in range(len(stream[0].dataset))]
    return torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
