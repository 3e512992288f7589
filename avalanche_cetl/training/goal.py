"""The goal of stage 2 from T1 as it was when the stage began."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from avalanche_cetl.models.coupled import CoupledModel


class FixedGoal:
    """A copy of T1 and of S's adapter, renewed at the start of each stage 2."""

    def __init__(self) -> None:
        self._copies: tuple[nn.Module, nn.Module] | None = None

    def renew(self, model: CoupledModel) -> None:
        """Take the weights as they are now."""
        assert model.source_adapter is not None
        parts = (model.decoder, model.source_adapter)
        if self._copies is None:
            self._copies = (copy.deepcopy(parts[0]), copy.deepcopy(parts[1]))
            for own in self._copies:
                own.requires_grad_(False)
            return
        for own, part in zip(self._copies, parts, strict=True):
            own.load_state_dict(part.state_dict())

    def code(self, features: Tensor) -> Tensor:
        """Return S's code, as :meth:`CoupledModel.source_code` does."""
        assert self._copies is not None
        return self._copies[1](features)

    @property
    def decoder(self) -> nn.Module:
        """T1's copy."""
        assert self._copies is not None
        return self._copies[0]
