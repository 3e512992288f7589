"""RidgeHead: a classifier of frozen features that is computed from sums, in any order of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl.common.labels import ABSENT
from avalanche_cetl.common.modes import without_autocast
from avalanche_cetl.common.validation import check_positive

#: What the regression's outputs, mostly in [0, 1], are multiplied by. Of 10, 20 and 40 it had about
#: the least cross entropy on validation images of CIFAR-100, with 10 to 100 classes.
SCALE = 20.0


class RidgeHead(nn.Module):
    """Ridge regression of the classes on frozen features, over all rows seen so far.

    It minimises ``sum |W f + b - onehot(y)|^2 + penalty |W|^2`` over all rows ``(f, y)``, exactly:
    rows enter the sums ``sum f f^T`` and ``sum f onehot(y)^T``, in float64, and nothing else is
    kept. So tasks in any order, and rows in mini-batches of any size, give the same head, which is
    the one of all rows at once, but for rounding. Classes may come at any time. No image and no
    feature is stored; what is stored grows with ``in_features ** 2``.

    The logits are 20 times the regression's outputs, which sum to 1 over the classes: so their
    softmax is of use where probabilities are read (``SoftTargets(head=...)``). A class without a
    row has the logit -30.

    Prior work: Zhuang et al. 2022 (ACIL) update this regression task by task; McDonnell et al. 2023
    (RanPAC) have the sums and the random projection.

    :param in_features: width D of the features.
    :param num_classes: outputs K to begin with; labels that are higher make it grow.
    :param penalty: > 0, the ``alpha`` of :class:`sklearn.linear_model.Ridge`. Default: the total
        variance of the features (after the projection), ``sum (f - mean)^2`` over rows and features
        by the number of rows: it follows their unit, and does not grow with the rows.
    :param projection: width M >= 1 of ``relu(P f)`` with P random and normal, read in place of f;
        sums and time then grow with M in place of D. Default: none.
    :param seed: of P.
    :raises ValueError: for values out of range.

    >>> head = RidgeHead(2, penalty=1e-3)
    >>> head.update(torch.tensor([[0.0, 1.0], [3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1, -1]))
    >>> head.update(torch.tensor([[0.0, 9.0]]), torch.tensor([2]))
    >>> head(torch.tensor([[0.1, 1.0], [2.8, 1.2], [0.0, 8.0]])).argmax(1)
    tensor([0, 1, 2])
    """

    gram: Tensor
    products: Tensor
    projection: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int = 0,
        *,
        penalty: float | None = None,
        projection: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if in_features < 1 or num_classes < 0 or (projection is not None and projection < 1):
            raise ValueError(
                f"in_features={in_features} and projection={projection} have to be >= 1, "
                f"num_classes={num_classes} >= 0."
            )
        if penalty is not None:
            check_positive("penalty", penalty)
        self.in_features, self.penalty, self.seed = in_features, penalty, seed
        self.width = in_features if projection is None else projection
        drawn = None
        if projection is not None:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(projection, in_features, generator=generator) / in_features**0.5
        self.register_buffer("projection", drawn)
        # The last row is of a feature that is always 1: the sums of the others, and of the classes.
        size = self.width + 1
        with torch.inference_mode(False):  # else the sums could not change outside of it
            gram = torch.zeros(size, size, dtype=torch.float64)
            products = torch.zeros(size, num_classes, dtype=torch.float64)
        self.register_buffer("gram", gram)
        self.register_buffer("products", products)
        self._solution: tuple[Any, Tensor, Tensor] | None = None

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        width = "" if self.projection is None else f", projection={self.width}, seed={self.seed}"
        return f"{self.in_features}, {self.num_classes}, penalty={self.penalty}{width}"

    @property
    def num_classes(self) -> int:
        """Return the number of outputs K."""
        return self.products.shape[1]

    @property
    def rows_per_class(self) -> Tensor:
        """Return how many rows of each class have been seen, ``(K,)``, int64."""
        return self.products[-1].round().long()

    def grow(self, num_classes: int) -> None:
        """Add outputs, where there are fewer than so many.

        :param num_classes: K; a class without a row has the logit -30.
        """
        missing = num_classes - self.num_classes
        if missing > 0:
            with torch.inference_mode(False):
                self.products = torch.cat(
                    [self.products, self.products.new_zeros(self.width + 1, missing)], 1
                )

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add rows to the sums.

        :param features: ``(N, D)``, of any floating type.
        :param labels: ``(N,)``, integer class indices; rows with one below 0 are passed over.
        :raises ValueError: for other shapes or labels, or features that are not finite; the sums
            are then as they were.
        """
        self._check(features)
        if labels.shape != features.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"labels are {tuple(labels.shape)}, {labels.dtype}; for features "
                f"{tuple(features.shape)} they have to be ({len(features)},), integer class "
                "indices, -1 where there is none."
            )
        known = labels >= 0
        labels = labels[known].to(self.gram.device).long()
        rows = self._inputs(features[known].to(self.gram.device, torch.float64))
        if not len(rows):
            return
        if not torch.isfinite(rows).all():
            raise ValueError("features are not finite: sums with them would be lost for good.")
        self.grow(1 + int(labels.max()))
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        self.gram.addmm_(rows.T, rows)
        self.products.index_add_(1, labels, rows.T)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, K)`` of features ``(N, D)``, in float32, of float64 in float64.

        :raises ValueError: for features of another width.
        """
        self._check(features)
        dtype = torch.promote_types(features.dtype, torch.float32)
        weight, bias = self._solved()
        with without_autocast(features):
            return nn.functional.linear(
                self._inputs(features.to(dtype)), weight.to(dtype), bias.to(dtype)
            )

    def classifier(self) -> nn.Module:
        """Return the head as it is now as ordinary layers in float32, without the sums.

        :return: a frozen ``nn.Linear(D, K)``; with a projection ``nn.Sequential``.
        """
        weight, bias = self._solved()
        layers: list[nn.Module] = [_linear(weight, bias)]
        if self.projection is not None:
            layers = [_linear(self.projection, None), nn.ReLU(), *layers]
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def _check(self, features: Tensor) -> None:
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(
                f"features are {tuple(features.shape)}; this head reads (N, {self.in_features})."
            )

    def _inputs(self, features: Tensor) -> Tensor:
        """Return what the regression reads, ``(N, width)``, of features ``(N, D)``."""
        if self.projection is None:
            return features
        return (features @ self.projection.to(features.dtype).T).relu()

    @torch.no_grad()
    def _solved(self) -> tuple[Tensor, Tensor]:
        """Return weight ``(K, width)`` and bias ``(K,)`` of the logits, in float64.

        They are computed anew when the sums have changed, in whatever way.
        """
        sums = (self.gram, self.products)
        key = [(one.device, one.data_ptr(), one._version, one.shape) for one in sums]
        if self._solution is None or self._solution[0] != key:
            self._solution = (key, *self._solve())
        return self._solution[1], self._solution[2]

    def _solve(self) -> tuple[Tensor, Tensor]:
        """Solve the normal equations of rows and labels about their means.

        The bias then has no penalty. The sums about the means are differences of larger numbers,
        which float64 bears while a feature's mean is less than some 10,000 of its deviations.
        """
        rows, classes = self.gram[-1, -1], self.products[-1]
        weight = self.products.new_zeros(self.num_classes, self.width)
        bias = self.products.new_full((self.num_classes,), ABSENT)
        if not rows:
            return weight, bias
        mean, share = self.gram[-1, :-1] / rows, classes / rows
        within = self.gram[:-1, :-1] - rows * torch.outer(mean, mean)
        across = self.products[:-1] - torch.outer(mean, classes)
        penalty = self.penalty
        if penalty is None:
            # One row has no variance, and any penalty gives the weight 0.
            penalty = float(within.diagonal().sum() / rows)
            floor = torch.finfo(within.dtype).eps * float(self.gram.diagonal().sum())
            penalty = max(penalty, floor)
        within.diagonal().add_(penalty)
        solved = torch.cholesky_solve(across, torch.linalg.cholesky(within)).T
        seen = classes > 0
        weight[seen] = SCALE * solved[seen]
        bias[seen] = SCALE * (share - solved @ mean)[seen]
        return weight, bias

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take the number of classes of the state as well."""
        saved = state_dict.get(f"{prefix}products")
        if isinstance(saved, Tensor) and saved.dim() == 2 and len(saved) == len(self.products):
            self.products = self.products.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RidgeHead:
        """Move to another device, but keep the types: sums in half precision are no sums."""
        super()._apply(  # type: ignore[no-untyped-call]
            lambda t: t.to(fn(t.new_empty(0)).device), recurse
        )
        return self


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a frozen layer in float32."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer.requires_grad_(False)
