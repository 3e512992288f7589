"""What the Fisher information is of: per-sample negative log likelihoods and their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

#: ``loss(outputs, targets)`` (or ``loss(outputs)`` when there are no targets):
#: a batch of outputs in, one loss per sample out, shape ``(N,)``.
Loss = Callable[..., Tensor]
LossName = Literal["sampled", "empirical"]
Likelihood = Literal["categorical", "gaussian"]


def negative_log_likelihood(likelihood: str) -> Loss:
    """Give the per-sample negative log likelihood of a network's output.

    :param likelihood: ``"categorical"``: cross entropy of logits ``(N, K)`` with
        class indices ``(N,)``. ``"gaussian"``: unit-variance Gaussian,
        ``1/2 sum (output - target)^2``, *summed* over all dimensions but the first.
    :return: a loss ``(outputs, targets) -> Tensor of shape (N,)``.
    :raises ValueError: for another name.
    """
    if likelihood == "categorical":
        return _categorical_nll
    if likelihood == "gaussian":
        return _gaussian_nll
    raise ValueError(
        f"likelihood={likelihood!r} is not known. Allowed: 'categorical' (class logits) "
        "or 'gaussian' (reconstructions)."
    )


def _categorical_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).flatten(1).square().sum(1)


@torch.no_grad()
def sample_targets(
    outputs: Tensor, likelihood: str, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one target per sample from the model's own predictive distribution.

    :param outputs: logits ``(N, K)`` or reconstructions ``(N, ...)``.
    :param likelihood: ``"categorical"`` draws labels from the softmax,
        ``"gaussian"`` adds unit-variance noise to the output.
    :param generator: a CPU generator; the draw happens on the CPU, so that the
        same seed gives the same targets on every device.
    :return: labels ``(N,)`` (int64), or noisy reconstructions shaped as ``outputs``.
    :raises ValueError: for another likelihood.
    """
    return _place(outputs, likelihood, _chance(outputs, len(outputs), likelihood, generator))


def _chance(
    outputs: Tensor, samples: int, likelihood: str, generator: torch.Generator | None
) -> Tensor:
    """Draw the randomness of a number of samples at once, whatever batches they come in."""
    if likelihood == "categorical":
        return torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    if likelihood == "gaussian":
        return torch.randn(samples, *outputs.shape[1:], generator=generator)
    negative_log_likelihood(likelihood)  # raises
    raise AssertionError


def _place(outputs: Tensor, likelihood: str, chance: Tensor) -> Tensor:
    if likelihood == "categorical":
        cumulated = outputs.detach().double().softmax(-1).cumsum(-1).cpu()
        drawn = (chance * cumulated[:, -1:] >= cumulated).sum(1)
        return drawn.clamp(max=outputs.shape[1] - 1).to(outputs.device)
    return outputs.detach() + chance.to(outputs)


class BoundLoss:
    """A loss, or the name of one, together with what it needs to make its targets.

    :param loss: ``"sampled"``, ``"empirical"`` or a callable.
    :param targets: of all N samples (a tensor or a tuple of tensors with N rows), or None.
    :param samples: N.
    :raises ValueError: for an unknown name, or an empirical loss without targets.
    """

    def __init__(
        self,
        loss: Loss | LossName,
        targets: Any,
        samples: int,
        likelihood: str = "categorical",
        generator: torch.Generator | None = None,
    ):
        if not callable(loss) and loss not in ("sampled", "empirical"):
            raise ValueError(
                f"loss={loss!r} is not known. Allowed: 'sampled', 'empirical', or a callable "
                "(outputs, targets) -> one loss per sample."
            )
        if loss == "empirical" and targets is None:
            raise ValueError("loss='empirical' needs targets=: labels, or images to reconstruct.")
        self._sampled = loss == "sampled"
        self.function: Loss = loss if callable(loss) else negative_log_likelihood(likelihood)
        self._targets = targets
        self._samples, self._likelihood, self._generator = samples, likelihood, generator
        self._chance: Tensor | None = None

    def targets(self, outputs: Any, rows: slice) -> Any:
        """Targets of some samples, given the model's outputs for them."""
        if not self._sampled:
            return select(self._targets, rows)
        if self._chance is None:
            self._chance = _chance(outputs, self._samples, self._likelihood, self._generator)
        return _place(outputs, self._likelihood, self._chance[rows])

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """One loss per sample, ``(n,)``.

        :raises ValueError: when the loss gives anything else.
        """
        values = self.function(outputs) if targets is None else self.function(outputs, targets)
        if not isinstance(values, Tensor) or values.dim() != 1:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the loss has to give one value per sample, shape (N,); it gave {shape}. "
                "Use reduction='none', and sum over everything but the first dimension."
            )
        return values


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to a tensor, or to every tensor of a nested tuple; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return function(value)
    return tuple(map_tensors(part, function) for part in value)


def select(value: Any, rows: int | slice | list[int]) -> Any:
    """Take some rows of a tensor, or of every tensor of a nested tuple."""
    return map_tensors(value, lambda t: t[rows])
