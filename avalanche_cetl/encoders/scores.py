"""What a classifier gives: logits, or probabilities, whose logits are taken."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from avalanche_cetl.common.picks import described
from avalanche_cetl.common.warning import warn_caller

#: Rows of the first mini-batch that are looked at again, beside as many rows of noise.
TRIED = 8
#: How far from 1 the sum of a row of probabilities may be: bfloat16 rounds to 4e-3.
NEAR = 1e-2
#: By how much noise is multiplied, so that a sigmoid gives 0 and 1.
LOUD = 1e4
#: Autograd's names of steps that change a tensor's shape or type, and not its numbers.
_SAME_NUMBERS = tuple(
    f"{name}Backward"
    for name in ("ToCopy", "Clone", "Alias", "View", "Squeeze", "Unsqueeze", "Select", "T")
)


class Scores:
    """Reads what a classifier gives as logits; finds out once whether it gives probabilities.

    Whether it does is decided on the first mini-batch that is read, and then kept:

    - ``"softmax"``: no number is negative and each row has the sum 1, for images and for noise;
    - ``"sigmoid"``: all numbers are in [0, 1], and autograd says that a sigmoid gave them, or for
      very loud noise some are 0 and some are 1 (a file of another program has no autograd);
    - ``"logits"``: all else. The numbers are then returned as they are.

    One mini-batch of true logits may have such numbers by chance; noise beside it tells them apart.
    Of probabilities p the logits are log p (softmax) or log p - log(1 - p) (sigmoid), with floors
    that keep them finite where p was rounded to 0 or 1.

    :param what: the classifier, for the warning.
    :ivar kind: ``"softmax"``, ``"sigmoid"`` or ``"logits"``; None before the first mini-batch.
    """

    def __init__(self, what: str):
        self.what = what
        self.kind: str | None = None

    def read(self, classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of a mini-batch.

        :param classifier: ``(N, ...) -> (N, K)``, of logits or of probabilities.
        :param x: its input, ``(N, ...)``.
        :raises ValueError: when it gives anything but ``(N, K)``.
        """
        found = classifier(x)
        if not isinstance(found, Tensor) or found.dim() != 2:
            raise ValueError(
                f"{self.what} gives {described(found)}; needed are logits (N, K), one row for each "
                "image. Wrap it in a module that returns them."
            )
        if self.kind is None and len(found):
            self.kind = _kind(classifier, x, found)
            if self.kind != "logits":
                warn_caller(
                    f"{self.what} gives probabilities (a {self.kind}), not logits; their logits "
                    "are taken. A network that ends before it would be more exact. This is said "
                    "once.",
                    RuntimeWarning,
                )
        return _LOGITS[self.kind or "logits"](found)


def _log_odds(p: Tensor) -> Tensor:
    limits = torch.finfo(p.dtype)
    return p.clamp_min(limits.tiny).log() - (1 - p).clamp_min(limits.eps).log()


_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda found: found,
    "softmax": lambda p: p.clamp_min(torch.finfo(p.dtype).tiny).log(),
    "sigmoid": _log_odds,
}


def _kind(classifier: Callable[[Tensor], Tensor], x: Tensor, found: Tensor) -> str:
    if not _in_unit_interval(found):
        return "logits"
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        few = x[:TRIED]
        noise = few.flip(-1)
        if x.is_floating_point():
            drawn = torch.rand(few.shape, generator=torch.Generator().manual_seed(0))
            noise = drawn.to(few)
        if _sum_to_one(classifier(torch.cat([few, noise])), found):
            return "softmax"
        if not x.is_floating_point():
            return "logits"
        if _ends_in_sigmoid(classifier, few):
            return "sigmoid"
        try:
            loud = classifier((2 * noise - 1) * LOUD)
        except (ValueError, RuntimeError):  # it reads images in its own range alone
            return "logits"
        low, high = loud.aminmax()
        return "sigmoid" if _in_unit_interval(loud) and low < NEAR and high > 1 - NEAR else "logits"


def _ends_in_sigmoid(classifier: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        with torch.enable_grad():
            step = classifier(x.clone().requires_grad_()).grad_fn
    except RuntimeError:  # a quantised network has no gradient
        return False
    while step is not None and step.name().startswith(_SAME_NUMBERS):
        step = step.next_functions[0][0]
    return step is not None and step.name().startswith("SigmoidBackward")


def _in_unit_interval(found: Tensor) -> bool:
    return bool(((found >= 0) & (found <= 1 + NEAR)).all())


def _sum_to_one(tried: Tensor, found: Tensor) -> bool:
    rows = torch.cat([found, tried])
    sums = (rows.sum(1) - 1).abs() < NEAR
    return rows.shape[1] > 1 and _in_unit_interval(rows) and bool(sums.all())
