"""The ways to a parameter's per-sample gradients, and what may go wrong on each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from avalanche_cetl.common.processes import StartAgainError

Kind = Literal["layer", "expanded", "module", "model", "plain"]


@dataclass
class Route:
    """How the per-sample gradients of one parameter are computed.

    :ivar kind: ``"layer"`` (a closed form), ``"expanded"`` (one copy per sample), ``"module"``
        (torch.func on a module), ``"model"`` (torch.func on the whole model) or ``"plain"`` (one
        backward pass per sample).
    :ivar owners: for ``"layer"``, paths of the modules that hold the parameter, with its local
        name there; for ``"module"``, the path of the module that torch.func runs, with the name
        as seen from it.
    :ivar rowwise: which inputs of the calls had a row for each sample when the route was tried:
        for ``"module"`` call by call, for ``"layer"`` of all calls as one.
    """

    kind: Kind
    owners: list[tuple[str, str]] = field(default_factory=list)
    rowwise: list[tuple[bool, ...]] = field(default_factory=list)


class RowMismatchError(StartAgainError):
    """A layer was given other rows than the batch's: its calls cannot be split by sample."""


class StalePlanError(RowMismatchError):
    """The routes of a kept plan do not compute autograd's gradients any more."""
