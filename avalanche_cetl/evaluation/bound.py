"""The bound of Theorem 3 (eq. 14) as Avalanche metrics, beside the error that it bounds.

The right-hand side is ``Bound = SourceError + 2 Disagreement + 3 SourceGap + 2 TargetGap``, with

- ``SourceError``: ``E_P |S - c_src|``, the error of S on the source data, as given;
- ``Disagreement``: ``E_Q |T2 - S|``, the share of images that S and T2 classify differently;
- ``SourceGap`` and ``TargetGap``: upper bounds of ``sup_f |E f(reconstruction) - E f(x)|``, for the
  reconstructions T1(S(x)) and T1(T2(x)). Over functions f with ``|f(a) - f(b)| <= d(a, b)`` the
  supremum is at most the mean of ``d(reconstruction, x)``, since each image with its own
  reconstruction is a coupling of the two distributions (Kantorovich and Rubinstein). Here d is the
  root mean square pixel difference in units of the images' root mean square deviation from their
  mean image: 0 for perfect reconstructions, about 1 for the mean image.

Smaller is better. The terms bound errors in [0, 1] when f, a difference of two labellings, changes
by at most the distance d between images. That is an assumption, and the bound is loose. Its terms
compare networks on the same images only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor, nn

from avalanche_cetl.common.labels import features_in
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.features.attach import check_source

if TYPE_CHECKING:
    from avalanche_cetl.models import CoupledModel

#: Factors of the four terms on the right-hand side of eq. 14.
FACTORS = {"SourceError": 1.0, "Disagreement": 2.0, "SourceGap": 3.0, "TargetGap": 2.0}


class _Sums:
    """Running sums over the mini-batches of an evaluation stream, in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.differ = self.wrong = self.labelled = 0
        self.source_gap = self.target_gap = 0.0
        self.pixels: Tensor | None = None
        self.squares = 0.0

    def add_images(self, x: Tensor) -> None:
        """Add images to the count and to the sums of the deviation from the mean image."""
        x = x.double()
        self.rows += len(x)
        self.squares += float(x.square().flatten(1).mean(1).sum())
        self.pixels = x.sum(0) + (0 if self.pixels is None else self.pixels)

    def deviation(self) -> float:
        """Return the root mean square deviation of all images from their mean image.

        NaN for one image, which is its own mean image: nothing is measured by it.
        """
        assert self.pixels is not None
        if self.rows < 2:
            return float("nan")
        mean_square = float((self.pixels / self.rows).square().mean())
        result: float = max(self.squares / self.rows - mean_square, 1e-24) ** 0.5
        return result


class LearningBound(PluginMetric[dict[str, float]]):
    r"""Both sides of eq. 14 over each experience of an evaluation stream.

    Emitted per experience: ``Bound_Exp``, the right-hand side

    .. math:: SourceError + 2 \, Disagreement + 3 \, SourceGap + 2 \, TargetGap

    and its terms, ``SourceError_Exp`` (S's error on the source data, as given),
    ``Disagreement_Exp`` (the share of images that S and T2 classify differently), ``SourceGap_Exp``
    and ``TargetGap_Exp`` (how far T1(S(x)) and T1(T2(x)) are from x: 0 for perfect pictures, about
    1 for the mean image). The gaps need two images or more: where there is one, they and the bound
    are NaN; where there is none, nothing is emitted. No label is read, unless ``error=True`` asks
    for the left-hand side as well, ``TargetError_Exp`` in [0, 1] (of the rows that have a label).

    :param source_error: S's error on the source data, in [0, 1]; a constant of S, so 0 (the
        default) changes no comparison between networks.
    :param head: a classifier of S's features ``(N, dim) -> (N, K)``, for an S whose classes are
        not T2's, which is put into eval mode; default: S's own logits.
    :param error: also the left-hand side, from the labels.
    :raises ValueError: for a source error outside [0, 1]; in evaluation for a model without
        S, or an S that does not classify.
    """

    def __init__(
        self, source_error: float = 0.0, head: nn.Module | None = None, error: bool = False
    ):
        super().__init__()
        if not 0 <= source_error <= 1:
            raise ValueError(f"source_error={source_error} is outside [0, 1].")
        self.source_error, self.head, self.error = float(source_error), head, error
        self._sums = _Sums()
        self._values: dict[str, float] = {}

    def before_eval_exp(self, strategy: Any) -> None:
        """Reset all sums.

        :raises ValueError: for stored features of another network than the model's source.
        """
        self.reset()
        source, experience = getattr(strategy.model, "source", None), strategy.experience
        if isinstance(source, Encoder):
            check_source(experience.dataset, source, "the evaluated experience")

    @torch.no_grad()
    def after_eval_iteration(self, strategy: Any) -> None:
        """Add a mini-batch: images and T2's logits, and labels where the error is asked for."""
        model: CoupledModel = strategy.model
        source: Encoder | None = getattr(model, "source", None)
        if source is None:
            raise ValueError("the bound (eq. 14) needs a CoupledModel with a source network.")
        x, sums = strategy.mb_x, self._sums
        features = features_in(strategy.adapted_dataset, strategy.mbatch)
        features = source(x) if features is None else features
        predicted = strategy.mb_output.argmax(1)
        if self.head is None:
            logits = source.cheapest_logits(x, features)
        else:
            self.head.to(strategy.device).eval()
            logits = self.head(features.to(strategy.mb_output.dtype))
        if logits.shape != strategy.mb_output.shape:
            raise ValueError(
                f"the source network has {logits.shape[1]} classes and the target network "
                f"{strategy.mb_output.shape[1]}; give head=, a classifier of S's features."
            )
        with evaluation_mode(model):
            from_source = model.reconstruct_source(features=features)
            from_target = model.reconstruct_target(x)
        sums.add_images(x)
        sums.differ += int((logits.argmax(1) != predicted).sum())
        sums.source_gap += _distances(from_source, x)
        sums.target_gap += _distances(from_target, x)
        if self.error:
            known = strategy.mb_y >= 0
            sums.wrong += int((predicted[known] != strategy.mb_y[known]).sum())
            sums.labelled += int(known.sum())

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the bound and its terms."""
        sums = self._sums
        if not sums.rows:
            return []
        scale = sums.deviation()
        terms = {
            "SourceError": self.source_error,
            "Disagreement": sums.differ / sums.rows,
            "SourceGap": sums.source_gap / sums.rows / scale,
            "TargetGap": sums.target_gap / sums.rows / scale,
        }
        self._values = {"Bound": sum(FACTORS[name] * value for name, value in terms.items())}
        self._values |= terms
        if self.error and sums.labelled:
            self._values["TargetError"] = sums.wrong / sums.labelled
        step = strategy.clock.train_iterations
        return [
            MetricValue(
                self,
                get_metric_name(f"{name}_Exp", strategy, add_experience=True, add_task=True),
                value,
                step,
            )
            for name, value in self._values.items()
        ]

    def result(self) -> dict[str, float]:
        """Return the last experience's values, by name without ``_Exp``."""
        return self._values

    def reset(self) -> None:
        """Reset all sums and values."""
        self._sums, self._values = _Sums(), {}

    def __str__(self) -> str:
        return "Bound_Exp"


def _distances(reconstructions: Tensor, images: Tensor) -> float:
    """Return the sum over images of the root mean square pixel difference."""
    squared = (reconstructions - images).double().flatten(1).square().mean(1)
    return float(squared.sqrt().sum())


def bound_metrics(
    *, source_error: float = 0.0, head: nn.Module | None = None, error: bool = False
) -> list[PluginMetric]:
    """Return the learning bound of eq. 14 as a metric; see :class:`LearningBound`.

    Without ``error`` it reads no label, so its right-hand side may be used to select networks.

    :param source_error: S's error on its own data, in [0, 1].
    :param head: a classifier of S's features with T2's classes.
    :param error: emit the left-hand side as well, from the labels.
    :return: a list of plugin metrics, for strategies whose model is a ``CoupledModel`` with S.
    """
    return [LearningBound(source_error, head, error)]
