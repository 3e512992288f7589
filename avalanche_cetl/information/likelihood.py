"""What the Fisher information is of: per-sample negative log likelihoods and their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_cetl.common.tensors import map_tensors, own_copy
from avalanche_cetl.information.outputs import (
    check_likelihood,
    check_outputs,
    normal_like,
    projected_outputs,
    vectors_of,
)

#: ``loss(outputs, targets)`` (or ``loss(outputs)`` when there are no targets):
#: a batch of outputs in, one loss per sample out, shape ``(N,)``.
Loss = Callable[..., Tensor]
LossName = Literal["sampled", "empirical", "logits"]
#: All of them.
LOSS_NAMES: tuple[str, ...] = get_args(LossName)


def negative_log_likelihood(likelihood: str) -> Loss:
    """Return the per-sample negative log likelihood of a network's output.

    :param likelihood: ``"categorical"``: cross entropy of logits ``(N, K)`` with
        class indices ``(N,)``. ``"bernoulli"``: binary cross entropy of logits ``(N, ...)``
        with targets in [0, 1] of the same shape (``(N,)`` and ``(N, 1)`` count as the same),
        *summed* over all dimensions but the first. ``"gaussian"``: unit-variance Gaussian,
        ``1/2 sum (output - target)^2``, summed likewise.
    :return: a loss ``(outputs, targets) -> Tensor of shape (N,)``.
    :raises ValueError: for another name.
    """
    check_likelihood(likelihood)
    if likelihood == "categorical":
        return _categorical_nll
    return _bernoulli_nll if likelihood == "bernoulli" else _gaussian_nll


def _categorical_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _bernoulli_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = _shaped(targets, outputs).to(outputs.dtype)
    each = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return each.reshape(len(each), -1).sum(1)


def _gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    away = outputs - _shaped(targets, outputs)
    return 0.5 * away.reshape(len(away), -1).square().sum(1)


def _shaped(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return targets in the outputs' shape.

    Subtraction would broadcast (N,) with (N, 1) to (N, N).
    """
    if targets.shape == outputs.shape:
        return targets
    if [n for n in targets.shape if n != 1] != [n for n in outputs.shape if n != 1]:
        raise ValueError(
            f"the targets have shape {tuple(targets.shape)}, the model's outputs "
            f"{tuple(outputs.shape)}; this likelihood needs one target for each output."
        )
    return targets.reshape(outputs.shape)


def check_targets(targets: Tensor, likelihood: str) -> None:
    """Raise ValueError unless the likelihood allows every target, and name the first row.

    Class indices (or probabilities) have to be >= 0, ``"bernoulli"`` targets in [0, 1], all of
    them finite.
    """
    if likelihood == "gaussian":
        good, allowed = targets.isfinite(), "finite values"
    elif likelihood == "bernoulli":
        good, allowed = (targets >= 0) & (targets <= 1), "values in [0, 1]"
    else:
        good = (targets >= 0) & targets.isfinite()
        allowed = "class indices from 0"
    rows = (~good.reshape(len(targets), -1).all(1)).nonzero().flatten()
    if len(rows):
        row = int(rows[0])
        value = targets[row].reshape(-1)[~good[row].reshape(-1)][0].item()
        raise ValueError(
            f"targets[{row}] is {value} (of {len(rows)} such rows); likelihood={likelihood!r} "
            f"needs {allowed}. An unknown label has no empirical Fisher information: leave "
            "those rows out, draw their labels with sample_targets, or use loss='sampled'."
        )


@torch.no_grad()
def sample_targets(
    outputs: Tensor, likelihood: str, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one target per sample from the model's own predictive distribution.

    :param outputs: logits ``(N, K)``, or ``(N, ...)`` for the other likelihoods.
    :param likelihood: ``"categorical"`` draws labels from the softmax, ``"bernoulli"`` 0 or 1
        for each logit from its sigmoid, ``"gaussian"`` adds unit-variance noise to the output.
    :param generator: a CPU generator; the draw happens on the CPU, so that the
        same seed gives the same targets on every device.
    :return: labels ``(N,)`` (int64), or 0 and 1, or noisy reconstructions, shaped and of the
        type of ``outputs``.
    :raises ValueError: for another likelihood, or outputs that it cannot read.
    """
    check_likelihood(likelihood)
    check_outputs(outputs, likelihood)
    return _place(outputs, likelihood, _chance(outputs, len(outputs), likelihood, generator))


def _chance(
    outputs: Tensor, samples: int, likelihood: str, generator: torch.Generator | None
) -> Tensor:
    """Draw the randomness of a number of samples at once, whatever batches they come in."""
    if likelihood == "categorical":
        return torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    if likelihood == "bernoulli":
        return torch.rand(samples, *outputs.shape[1:], generator=generator, dtype=torch.float64)
    return torch.randn(samples, *outputs.shape[1:], generator=generator)


def _place(outputs: Tensor, likelihood: str, chance: Tensor) -> Tensor:
    if likelihood == "categorical":
        cumulated = outputs.detach().double().softmax(-1).cumsum(-1).cpu()
        drawn = (chance * cumulated[:, -1:] >= cumulated).sum(1)
        return drawn.clamp(max=outputs.shape[1] - 1).to(outputs.device)
    if likelihood == "bernoulli":
        return (chance < outputs.detach().double().sigmoid().cpu()).to(outputs)
    return outputs.detach() + chance.to(outputs)


class BoundLoss:
    """A loss, or the name of one, together with what it needs to make its targets.

    :param loss: ``"sampled"``, ``"empirical"``, ``"logits"`` or a callable.
    :param targets: of all N samples (a tensor or a tuple of tensors with N rows), or None.
    :param samples: N.
    :param likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``.
    :param generator: of drawn targets and vectors; None: torch's.
    :raises ValueError: for an unknown name, or an empirical loss without targets or with
        targets that the likelihood does not allow.
    """

    def __init__(
        self,
        loss: Loss | LossName,
        targets: Any,
        samples: int,
        likelihood: str = "categorical",
        generator: torch.Generator | None = None,
    ):
        if not callable(loss) and loss not in LOSS_NAMES:
            allowed = ", ".join(map(repr, LOSS_NAMES))
            raise ValueError(
                f"loss={loss!r} is not known. Allowed: {allowed}, or a callable "
                "(outputs, targets) -> one loss per sample."
            )
        if loss == "empirical" and targets is None:
            raise ValueError("loss='empirical' needs targets=: labels, or images to reconstruct.")
        if loss == "sampled" and targets is not None:
            raise ValueError(
                "loss='sampled' draws its targets from the model and reads no targets=; leave them "
                "out, or give loss='empirical'."
            )
        if loss == "logits" and targets is not None:
            raise ValueError(
                "loss='logits' draws its vectors and reads no targets=; leave them out, or give "
                "loss=projected_outputs with vectors of your own."
            )
        map_tensors(targets, lambda t: _check_rows(t, samples))
        self._named, self._logits = not callable(loss), loss == "logits"
        self._draws = loss in ("sampled", "logits")
        if loss == "empirical" and isinstance(targets, Tensor):
            check_targets(targets, likelihood)
        self.function: Loss
        if callable(loss):
            self.function = loss
        else:
            nll = negative_log_likelihood(likelihood)
            self.function = projected_outputs if self._logits else nll
        self._targets = targets
        self._samples, self._likelihood, self._generator = samples, likelihood, generator
        self._chance: Tensor | None = None

    def targets(self, outputs: Any, rows: slice) -> Any:
        """Return the targets of some samples, given the model's outputs for them."""
        if self._named:
            check_outputs(outputs, self._likelihood)
        if not self._draws:
            return own_copy(select(self._targets, rows))  # a loss may write into its targets
        if self._logits:
            if self._chance is None:
                self._chance = normal_like(outputs, self._samples, self._generator)
            return vectors_of(outputs, self._likelihood, self._chance[rows])
        if self._chance is None:
            self._chance = _chance(outputs, self._samples, self._likelihood, self._generator)
        return _place(outputs, self._likelihood, self._chance[rows])

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return one loss per sample, ``(n,)``.

        :raises ValueError: when the loss returns anything else.
        """
        values = self.function(outputs) if targets is None else self.function(outputs, targets)
        if not isinstance(values, Tensor) or values.dim() != 1:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the loss has to give one value per sample, shape (N,); it gave {shape}. "
                "Use reduction='none', and sum over everything but the first dimension."
            )
        return values


def _check_rows(targets: Tensor, samples: int) -> Tensor:
    if not targets.dim() or len(targets) != samples:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} for {samples} samples: their first dimension "
            "has to be the samples."
        )
    return targets


def select(value: Any, rows: int | slice | list[int]) -> Any:
    """Return some rows of a tensor, or of every tensor of a nested tuple."""
    return map_tensors(value, lambda t: t[rows])
