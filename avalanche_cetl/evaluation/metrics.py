"""CETL's losses, penalties, weight shares and pictures as Avalanche metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue, TensorImage
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor
from torchvision.utils import make_grid

from avalanche_cetl.allocation.penalty import WeightPenalty
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.plugins.base import training_of
from avalanche_cetl.training.strategy import CETLStrategy

if TYPE_CHECKING:
    from avalanche_cetl.models import CoupledModel

#: Of the stages; plugins announce theirs.
LOSSES = ("L_rs", "L_rt", "L_c")
PENALTIES = ("DWA1", "DWA2", "DWA3")


class _OneValue(PluginMetric[float]):
    """One value, emitted under the metric's own name; None where the quantity did not occur."""

    def __init__(self) -> None:
        super().__init__()
        self._value: float | None = None

    def emit(self, strategy: Any, value: float | None) -> list[MetricValue]:
        """Keep the value, and return it for the loggers."""
        self._value = value
        return [] if value is None else [_value(self, strategy, str(self), value)]

    def result(self) -> float | None:
        """Return the last value."""
        return self._value

    def reset(self) -> None:
        """Remove the value."""
        self._value = None


class RoundMean(_OneValue):
    """The mean of one loss or penalty over a round, emitted at its end.

    Nothing is emitted in rounds in which the quantity did not occur.

    :param quantity: ``"L_rs"``, ``"L_rt"``, ``"L_c"`` (unweighted, means over batch and
        pixels), a plugin's loss (``"L_soft"``, ``"L_hint"``, ``"L_fitnet"``), or ``"DWA1"``
        to ``"DWA3"`` (eq. 11, lambda included).
    """

    def __init__(self, quantity: str):
        super().__init__()
        self.quantity = quantity

    def after_training_epoch(self, strategy: CETLStrategy) -> list[MetricValue]:
        """Emit the round's mean, at the strategy's epoch count."""
        return self.emit(strategy, training_of(strategy).round_losses.get(self.quantity))

    def __str__(self) -> str:
        return self.quantity


class _NamedValues(PluginMetric[dict[str, float]]):
    """Several values a round, each under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, float] = {}

    def values(self, strategy: CETLStrategy) -> dict[str, float]:
        """Return the values of the round that ends, by name."""
        raise NotImplementedError

    def after_training_epoch(self, strategy: CETLStrategy) -> list[MetricValue]:
        """Emit the round's values, in their order."""
        self._values = self.values(strategy)
        return [_value(self, strategy, name, value) for name, value in self._values.items()]

    def result(self) -> dict[str, float]:
        """Return the last round's values, by name."""
        return self._values

    def reset(self) -> None:
        """Remove the values."""
        self._values = {}


class RecordedLosses(_NamedValues):
    """The means over a round of all other losses that were recorded, each under its own name.

    A plugin's loss reaches the loggers by ``strategy.record_loss(name, loss, images)``.

    :param known: names that have a metric of their own.
    """

    def __init__(self, known: Sequence[str] = ()):
        super().__init__()
        self.known = tuple(known)

    def values(self, strategy: CETLStrategy) -> dict[str, float]:
        """Return the round's means, in the order in which they were first recorded."""
        found = training_of(strategy).round_losses
        return {name: found[name] for name in found if name not in self.known}

    def __str__(self) -> str:
        return "Losses"


class WeightShares(_NamedValues):
    """The share of weights that two tasks share (RF >= u), layer by layer and overall.

    Emitted at the end of each round as ``Shared_GFI1`` (all weights), ``Private_GFI1`` (one
    minus it) and ``Shared_GFI1/layer``, likewise for GFI2 and GFI3. Values in [0, 1].
    In a basis the share of a layer is that of its directions, and counts for all its weights.
    Nothing is emitted where no relative Fisher information is measured: by variants without it,
    in the Kronecker basis without a gate, and by other strategies than ``CETLStrategy``.
    """

    def values(self, strategy: CETLStrategy) -> dict[str, float]:
        """Return the shares of the latest measurement."""
        found: dict[str, float] = {}
        if not isinstance(strategy, CETLStrategy):
            return found
        for name, importance in strategy.importance.items():
            if not importance.shared:
                continue
            counts: dict[str, float] = defaultdict(float)
            sizes: dict[str, int] = defaultdict(int)
            for parameter, share in importance.shared.items():
                layer = parameter.rpartition(".")[0]
                counts[layer] += share * importance.sizes[parameter]
                sizes[layer] += importance.sizes[parameter]
            overall = sum(counts.values()) / sum(sizes.values())
            found[f"Shared_{name}"] = overall
            found[f"Private_{name}"] = 1 - overall
            for layer in counts:
                found[f"Shared_{name}/{layer}"] = counts[layer] / sizes[layer]
        return found

    def __str__(self) -> str:
        return "Shared"


class OutputMovement(_OneValue):
    """How far an experience has moved the outputs on old images, as ``Moved``, at its end.

    It is what the quadratic of :class:`~avalanche_cetl.GFIPlugin` predicts, to first order: a root
    mean square, in standard deviations of the logits. Nothing is emitted in the first experience,
    nor where the quadratic has no such unit (``fisher="logits", normalize=False``, no gate).
    """

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit what the first such plugin tells of the experience that ends."""
        told = (one.moved for one in strategy.plugins if isinstance(one, WeightPenalty))
        return self.emit(strategy, next((moved for moved in told if moved is not None), None))

    def __str__(self) -> str:
        return "Moved"


class Picture(TensorImage):
    """An image ``(3, H, W)`` in [0, 1]; as an array, which W&B asks for, ``(H, W, 3)`` bytes."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        pixels = (self.image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
        result: np.ndarray[Any, Any] = pixels if dtype is None else pixels.astype(dtype)
        return result


class ReconstructionImages(PluginMetric[Any]):
    """A picture with rows x, T1(S(x)) and T1(T2(x)), emitted after a round.

    It shows the first target images of the current experience.

    :param count: number of images, >= 1.
    :param every: rounds between two pictures, >= 1.
    :raises ValueError: for numbers out of range.
    """

    def __init__(self, count: int = 8, every: int = 1):
        super().__init__()
        if count < 1 or every < 1:
            raise ValueError(f"count={count} and every={every} have to be >= 1.")
        self.count, self.every = count, every
        self._grid: Tensor | None = None
        self._rounds = 0

    def after_training_epoch(self, strategy: CETLStrategy) -> list[MetricValue]:
        """Emit the picture."""
        self._rounds += 1
        if (self._rounds - 1) % self.every:
            return []
        images, _, features = strategy.target_sample(self.count)
        rows = reconstruction_rows(strategy.model, images, features)
        self._grid = image_grid(rows)
        return [_value(self, strategy, str(self), Picture(self._grid))]

    def result(self) -> Tensor | None:
        """Return the last picture, ``(3, H, W)`` in [0, 1]."""
        return self._grid

    def reset(self) -> None:
        """Remove the picture."""
        self._grid = None

    def __str__(self) -> str:
        return "Reconstructions"


@torch.no_grad()
def reconstruction_rows(
    model: CoupledModel, images: Tensor, features: Tensor | None = None
) -> dict[str, Tensor]:
    """Return x, T1(S(x)) (where there is an S) and T1(T2(x)), each ``(N, C, H, W)``, in eval mode.

    :param model: the coupled network.
    :param images: x, ``(N, C, H, W)`` on its device.
    :param features: S's features of the images; None to run S.
    """
    with evaluation_mode(model):
        rows = {"x": images}
        if model.source is not None:
            rows["T1(S(x))"] = model.reconstruct_source(images, features=features)
        rows["T1(T2(x))"] = model.reconstruct_target(images)
    return rows


def image_grid(rows: dict[str, Tensor]) -> Tensor:
    """Return rows of images as one picture ``(3, H, W)``, scaled by the range of x to [0, 1]."""
    reference = rows["x"]
    low, high = float(reference.min()), float(reference.max())
    images = torch.cat([row.float().cpu() for row in rows.values()])
    images = ((images - low) / max(high - low, 1e-12)).clamp(0, 1)
    result: Tensor = make_grid(images, nrow=len(reference), padding=1, pad_value=0.5)
    return result


def _value(origin: Any, strategy: CETLStrategy, name: str, value: Any) -> MetricValue:
    full = get_metric_name(name, strategy, add_experience=False, add_task=False)
    return MetricValue(origin, full, value, strategy.clock.train_iterations)


def cetl_metrics(
    *, losses: bool = True, dwa: bool = True, images: int = 0, every: int = 1
) -> list[PluginMetric]:
    """Return the metrics of CETL's training, for an ``EvaluationPlugin``.

    :param losses: L_rs, L_rt, L_c and every loss that a plugin records, per round.
    :param dwa: DWA1 to DWA3 per round.
    :param images: number of images in the picture of reconstructions; 0: no picture.
    :param every: rounds between two pictures.
    :return: a list of plugin metrics; they need :class:`CETLStrategy`.
    """
    metrics: list[PluginMetric] = [RoundMean(name) for name in LOSSES if losses]
    metrics += [RoundMean(name) for name in PENALTIES if dwa]
    if losses:
        metrics.append(RecordedLosses(LOSSES + PENALTIES))
    if images:
        metrics.append(ReconstructionImages(images, every))
    return metrics


def gfi_metrics() -> list[PluginMetric]:
    """Return the metrics of Generalized Fisher Information.

    The shares of shared and private weights per layer (eq. 10), in CETL's rounds
    (:class:`WeightShares`), and how far outputs on old images have moved, with ``GFIPlugin`` in any
    strategy (:class:`OutputMovement`).
    """
    return [WeightShares(), OutputMovement()]
