"""Linear probe: a classifier of a frozen encoder's features."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_cetl.common.labels import ABSENT
from avalanche_cetl.common.standardize import SHARE, floored_deviation
from avalanche_cetl.common.validation import renamed

logger = logging.getLogger(__name__)

#: What features that do not vary are divided by.
LEAST_DEVIATION = 1e-8
#: Values of C to choose from, in the order in which they are tried.
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: C where no class has two rows, so that nothing can be held out.
UNKNOWN = 1.0
#: Parts into which the rows are split, at most.
FOLDS = 5
#: Rows that are tried on: where there are twice as many, so many are drawn, class by class.
TRIED = 500


class CrossValidation(NamedTuple):
    """How well a probe of one C classifies rows that it was not fitted on.

    :ivar log_likelihood: of their labels, a mean over rows, in nats.
    :ivar accuracy: the share of rows that are right, in [0, 1].
    :ivar rows: how many were held out, each once.
    """

    log_likelihood: float
    accuracy: float
    rows: int


class LinearProbe(nn.Linear):
    """A probe, and how it was chosen; made by :func:`linear_probe`.

    :ivar C: inverse of the l2 penalty's weight, as in scikit-learn.
    :ivar held_out: of this C; None where C was given, or no class has two rows.
    """

    C: float
    held_out: CrossValidation | None

    def extra_repr(self) -> str:
        """Return sizes, C and the cross-validated accuracy."""
        told = f"{super().extra_repr()}, C={self.C:g}"
        return told if self.held_out is None else f"{told}, accuracy={self.held_out.accuracy:.3f}"


@renamed(strength="C")
def linear_probe(
    features: Tensor, labels: Tensor, C: float | None = None, num_classes: int | None = None
) -> LinearProbe:
    """Return a logistic regression on standardised features, with an l2 penalty, as a linear layer.

    The layer reads raw features in float32: the standardisation is in its weights.

    Without C, the one of 1e-4, 1e-3, ... 10 under which labels that were held out are likeliest
    (cross-validation in at most 5 parts, on about 500 rows of more) is taken: with few labels that
    probe is neither unsure of everything nor sure of what it cannot know. The choice is logged
    (Python's logging, level INFO) and kept in the layer.

    :param features: ``(N, dim)``, of any floating type.
    :param labels: ``(N,)``, integer class indices >= 0, of two classes or more.
    :param C: inverse of the l2 penalty's weight, > 0, as in
        :class:`sklearn.linear_model.LogisticRegression`; None: chosen. Where no class has two rows
        nothing can be held out, and it is 1.
    :param num_classes: outputs K; default: the highest label + 1. Classes without a row get a logit
        of -30.
    :return: a frozen ``nn.Linear(dim, K)`` in float32 on the features' device; it gives logits.
    :raises ValueError: for values out of range, of the wrong shape, or without a row.

    >>> x = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0], [3.0, 2.0]])
    >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), C=1.0)(x).argmax(1)
    tensor([0, 0, 1, 1])
    """
    for name, tensor in (("features", features), ("labels", labels)):
        if not tensor.numel():
            raise ValueError(
                f"{name} is empty, of shape {tuple(tensor.shape)}: there is no row to learn from."
            )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}: class indices have to be integers.")
    known = labels.unique().tolist()
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} have to be "
            "(N, dim) and (N,)."
        )
    if len(known) < 2 or min(known) < 0:
        raise ValueError(f"labels {known}: two classes or more are needed, counted from 0.")
    count = max(known) + 1 if num_classes is None else num_classes
    if count <= max(known):
        raise ValueError(f"num_classes={count}, but there is a label {max(known)}.")
    if C is not None and not C > 0:
        raise ValueError(f"C={C} has to be > 0.")
    device = features.device
    features = features.detach().float().cpu()
    share = torch.tensor(SHARE, dtype=torch.float64)
    mean = features.mean(0)
    std = floored_deviation(features, correction=1, share=share).clamp_min(LEAST_DEVIATION)
    scaled = ((features - mean) / std).double().numpy()
    numbers = labels.cpu().numpy()
    held_out = None
    if C is None:
        C, held_out = _chosen(scaled, numbers)
    (weights, biases), *_ = _path(scaled, numbers, [C])
    weight = torch.as_tensor(weights, dtype=features.dtype) / std
    bias = torch.as_tensor(biases, dtype=features.dtype) - weight @ mean
    layer = LinearProbe(features.shape[1], count)
    layer.C, layer.held_out = float(C), held_out
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(ABSENT)
        layer.weight[known] = weight
        layer.bias[known] = bias
    return layer.requires_grad_(False).to(device)


Fit = tuple[np.ndarray, np.ndarray]


def _path(x: np.ndarray, labels: np.ndarray, grid: Sequence[float]) -> Iterator[Fit]:
    """Fit one C after another; yield weights and biases of the classes that there are."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=300, warm_start=True)
    for C in grid:
        model.set_params(C=C).fit(x, labels)
        weight, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn gives the second class's row alone
            weight = np.concatenate([np.zeros_like(weight), weight])
            bias = np.concatenate([np.zeros_like(bias), bias])
        yield weight.copy(), bias.copy()


def _with_two_rows(x: np.ndarray, labels: np.ndarray) -> Fit:
    """Return the rows of classes that have two or more."""
    classes, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, classes[counts > 1])
    return x[kept], labels[kept]


def _chosen(x: np.ndarray, labels: np.ndarray) -> tuple[float, CrossValidation | None]:
    """Return C by cross-validation, and how well it did."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, train_test_split

    x, labels = _with_two_rows(x, labels)
    few = max(TRIED, 2 * len(set(labels)))
    if len(labels) >= 2 * few:
        x, _, labels, _ = train_test_split(
            x, labels, train_size=few, random_state=0, stratify=labels
        )
        x, labels = _with_two_rows(x, labels)
    if len(set(labels)) < 2:
        logger.info("no class but one has two labelled rows: the linear probe has C=%g", UNKNOWN)
        return UNKNOWN, None
    if x.shape[1] > len(x):  # the penalty stays what it is when the features are turned
        left, sizes, _ = np.linalg.svd(x, full_matrices=False)
        x = left * sizes
    parts = int(min(FOLDS, np.unique(labels, return_counts=True)[1].min()))
    splits = list(StratifiedKFold(parts, shuffle=True, random_state=0).split(x, labels))
    best: tuple[float, CrossValidation] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        paths = [_path(x[train], labels[train], GRID) for train, _ in splits]
        for C in GRID:
            likelihood = right = 0.0
            for (train, test), path in zip(splits, paths, strict=True):
                weight, bias = next(path)
                logits = x[test] @ weight.T + bias
                place = np.searchsorted(np.unique(labels[train]), labels[test])
                logits -= logits.max(1, keepdims=True)
                logits -= np.log(np.exp(logits).sum(1, keepdims=True))
                likelihood += logits[np.arange(len(test)), place].sum()
                right += (logits.argmax(1) == place).sum()
            found = CrossValidation(likelihood / len(x), right / len(x), len(x))
            if best is not None and found.log_likelihood < best[1].log_likelihood:
                break  # less penalty makes it worse from here on
            best = C, found
    assert best is not None
    logger.info(
        "the linear probe has C=%g, and is right on %.1f %% of %d labelled rows held out",
        best[0], 100 * best[1].accuracy, best[1].rows,
    )  # fmt: skip
    return best
