"""Generalized Fisher Information (eq. 10) and the Dynamic Weight Allocation penalty (eq. 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis

#: Weights that the penalty is computed for at once. Measured over 8 million float32 weights on one
#: core: 2^17 and 2^19 are equal, 2^15 takes 1.5 times as long (too many small operations), 2^23 1.3
#: times (three tensors no longer fit into the cache).
_BLOCK = 2**17


@dataclass(frozen=True)
class Quantile:
    """A threshold on relative Fisher information that is a quantile of its own values.

    ``Quantile(0.8)`` shares the 20 % of weights with the largest RF, whatever the estimator,
    but never a weight whose RF is 0 (dead units, weights that only one task uses).

    :param q: in [0, 1].
    :raises ValueError: when q is outside.
    """

    q: float

    def __post_init__(self) -> None:
        check_unit_interval("Quantile", self.q)

    def of(self, relative: Mapping[str, Tensor]) -> float:
        """Return the q-quantile (the higher value) of all weights' RF."""
        values = torch.cat([value.flatten().float() for value in relative.values()])
        k = min(values.numel(), int(self.q * values.numel()) + 1)
        return max(float(values.kthvalue(k).values), torch.finfo(torch.float32).tiny)


def check_unit_interval(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless the value is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} has to be a number in [0, 1].")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is outside [0, 1].")


def check_threshold(threshold: object) -> None:
    """Raise TypeError or ValueError unless the threshold is a number in [0, 1] or a Quantile."""
    if not isinstance(threshold, Quantile):
        check_unit_interval("threshold", threshold)


def shared_weights(
    relative: Mapping[str, Tensor], threshold: float | Quantile = 0.5
) -> dict[str, Tensor]:
    """Return which weights two tasks may share: those with ``RF >= threshold``.

    :param relative: relative Fisher information, values in [0, 1].
    :param threshold: the paper's u, in [0, 1], or a :class:`Quantile` of the values given.
    :return: bool tensors of the same shapes.
    """
    check_threshold(threshold)
    u = threshold.of(relative) if isinstance(threshold, Quantile) else threshold
    return {name: value >= u for name, value in relative.items()}


def generalized_fisher(
    fisher: Mapping[str, Tensor],
    relative: Mapping[str, Tensor],
    *,
    threshold: float | Quantile = 0.5,
    probability: float = 0.9,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""Compute Generalized Fisher Information, the random gate of eq. 10.

    A weight that the tasks share (:math:`RF_i \ge u`) keeps its Fisher information,
    :math:`GFI_i = F_i`, with probability p, and gets 0 otherwise; a private one
    (:math:`RF_i < u`) keeps it with probability 1 - p. Drawn weight by weight.

    :param fisher: Fisher information of the task to keep, values >= 0.
    :param relative: relative Fisher information, same names and shapes, in [0, 1].
    :param threshold: u, in [0, 1] (the paper: 0.5), or a :class:`Quantile` over all weights.
    :param probability: p, in [0, 1] (the paper: 0.9).
    :param generator: CPU generator; the draw happens on the CPU, so that a seed gives the
        same gate on every device.
    :return: dict keyed as ``fisher``: each entry is either the Fisher value or 0.
    :raises ValueError: when names or shapes differ, or u or p is outside [0, 1].

    >>> f, rf = {"w": torch.tensor([2.0, 3.0])}, {"w": torch.tensor([0.9, 0.1])}
    >>> generalized_fisher(f, rf, threshold=0.5, probability=1.0)
    {'w': tensor([2., 0.])}
    """
    check_unit_interval("probability", probability)
    _check_same("fisher", fisher, "relative", relative)
    shared = shared_weights(relative, threshold)
    result = {}
    for name, value in fisher.items():
        draw = torch.rand(value.shape, generator=generator).to(value.device)
        # `draw < p` is certain for p = 1, impossible for p = 0: the draw is in [0, 1).
        keep = torch.where(shared[name], draw < probability, draw >= probability)
        result[name] = torch.where(keep, value, torch.zeros_like(value))
    return result


def mean_importance(importance: Mapping[str, Tensor], basis: KroneckerBasis | None = None) -> float:
    """Compute the mean importance over all weights whose importance is not zero.

    :param importance: values >= 0.
    :param basis: that it is measured in. A layer's directions, of which some may be left out,
        stand for all its weights: its importances are summed over directions and divided by the
        number of its weights, times the share of its directions that are not zero. So the mean is
        the same in every basis that keeps all directions.
    :return: 0 where all are zero.
    """
    total, count = _total_and_count(importance, basis)
    return total / count if count else 0.0


def normalize_importance(
    importance: Mapping[str, Tensor], basis: KroneckerBasis | None = None
) -> dict[str, Tensor]:
    """Return importances rescaled to mean 1 over their non-zero entries, all parameters together.

    The scale of Fisher information depends on network and loss; this takes it out of the
    penalty's strength. All zeros stay zeros.

    :param importance: values >= 0.
    :param basis: that it is measured in; see :func:`mean_importance`.
    :return: new tensors with the same names and shapes.
    """
    total, count = _total_and_count(importance, basis)
    scale = count / total if total > 0 else 0.0
    return {name: value * scale for name, value in importance.items()}


def _total_and_count(
    importance: Mapping[str, Tensor], basis: KroneckerBasis | None
) -> tuple[float, float]:
    """Return the sum of all importances, and the number of weights that they are of."""
    total, count = 0.0, 0.0
    for name, value in importance.items():
        total += float(value.sum(dtype=torch.float64))
        live = int(value.count_nonzero())
        layer = None if basis is None else basis.get(name)
        count += live if layer is None else live / max(1, value.numel()) * layer.weights
    return total, count


def dwa_penalty(
    params: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
    lam: float,
    basis: KroneckerBasis | None = None,
) -> Tensor:
    r"""Compute the penalty of Dynamic Weight Allocation (eq. 11).

    .. math:: \sum_i \frac{\lambda}{2} \, GFI_i \, (\theta_i - \theta^*_i)^2

    It is a sum over all weights named in ``importance``, not a mean. Of complex weights the squared
    distance ``|theta - theta*|^2`` counts. Value and gradient come out of one pass over the
    weights.

    :param params: current parameters; names that ``importance`` lacks are free.
    :param anchors: the parameters theta* to stay near.
    :param importance: GFI, values >= 0.
    :param lam: the strength lambda, >= 0.
    :param basis: that the importance is measured in: for its layers the sum is over directions,
        :math:`\lambda / 2 \, GFI_{ij} \, (U^T (W - W^*) V)_{ij}^2`.
    :return: a scalar tensor, differentiable with respect to ``params``.
    :raises ValueError: when a name is missing or shapes differ.

    >>> one = {"w": torch.ones(3)}
    >>> dwa_penalty({"w": torch.full((3,), 3.0)}, one, one, lam=0.5)
    tensor(3.)
    """
    if not importance:
        return torch.zeros(())
    parts: list[Tensor] = []
    for name, weight in importance.items():
        if name not in params or name not in anchors:
            raise ValueError(f"importance has {name!r}, which params or anchors lack.")
        parameter, anchor = params[name], anchors[name]
        if basis is not None and name in basis:
            away = {n: params[n] - anchors[n] for n in basis[name].parameters}
            parameter = basis[name].rotate(away)
            anchor = torch.zeros_like(parameter)
        if not parameter.shape == anchor.shape == weight.shape:
            raise ValueError(
                f"{name!r}: shapes differ: parameter {tuple(parameter.shape)}, "
                f"anchor {tuple(anchor.shape)}, importance {tuple(weight.shape)}."
            )
        if parameter.is_complex():  # |theta - theta*|^2, one importance for both parts
            parameter, anchor = torch.view_as_real(parameter), torch.view_as_real(anchor)
            weight = weight.unsqueeze(-1).expand_as(parameter)
        parts += (parameter, anchor, weight)
    penalty: Tensor = _Penalty.apply(float(lam), *parts)
    return penalty


class _Penalty(torch.autograd.Function):
    """Eq. 11; its gradient ``lam GFI (theta - theta*)`` falls out of the forward pass."""

    @staticmethod
    def forward(ctx: Any, lam: float, *parts: Tensor) -> Tensor:
        params, anchors, importance = parts[0::3], parts[1::3], parts[2::3]
        pull: Sequence[Tensor]
        if params[0].device.type == "cpu":
            total, pull = _in_blocks(params, anchors, importance, lam)
        else:
            away = torch._foreach_sub(params, anchors)
            pull = torch._foreach_mul(torch._foreach_mul(away, importance), lam)
            terms = [(a * p).sum() for a, p in zip(away, pull, strict=True)]
            total = torch.stack([term.to(terms[0]) for term in terms]).sum() / 2
        ctx.lam, ctx.pull = lam, list(pull)
        ctx.save_for_backward(*parts)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        gradients_of_params: Sequence[Tensor]
        if torch.is_grad_enabled() or ctx.pull is None:  # differentiated twice, or once more
            parts = ctx.saved_tensors
            gradients_of_params = [
                scale * ctx.lam * weight * (parameter - anchor)
                for parameter, anchor, weight in zip(
                    parts[0::3], parts[1::3], parts[2::3], strict=True
                )
            ]
        else:
            gradients_of_params, ctx.pull = ctx.pull, None
            if scale.device.type != "cpu" or scale != 1:
                gradients_of_params = [gradient.mul_(scale) for gradient in gradients_of_params]
        return None, *(part for gradient in gradients_of_params for part in (gradient, None, None))


def _in_blocks(
    params: Sequence[Tensor], anchors: Sequence[Tensor], importance: Sequence[Tensor], lam: float
) -> tuple[Tensor, list[Tensor]]:
    """Return penalty and gradient from one pass, by pieces that stay in the processor's cache."""
    total = torch.zeros((), dtype=torch.promote_types(params[0].dtype, torch.float32))
    pull = []
    for parameter, anchor, weight in zip(params, anchors, importance, strict=True):
        gradient = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        flat = [t.reshape(-1) for t in (parameter, anchor, weight, gradient)]
        for theta, star, w, out in zip(*(t.split(_BLOCK) for t in flat), strict=True):
            away = theta - star
            torch.addcmul(out.new_zeros(()), away, w, value=lam, out=out)
            total += torch.dot(away.to(total.dtype), out.to(total.dtype))
        pull.append(gradient)
    return total / 2, pull


def _check_same(name_a: str, a: Mapping[str, Tensor], name_b: str, b: Mapping[str, Tensor]) -> None:
    if a.keys() != b.keys():
        raise ValueError(f"{name_a} and {name_b} name different parameters: {a.keys() ^ b.keys()}.")
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(
                f"{name!r}: {name_a} has shape {tuple(a[name].shape)}, "
                f"{name_b} {tuple(b[name].shape)}."
            )
