"""Where a run computes, and how: the device, its precision and layout."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Where:
    """Where networks train and are read; not part of a run's settings, but kept in its file.

    :ivar device: as torch names it; the data of a run lies there too.
    :ivar precision: ``"float32"``, or ``"bfloat16"``: forward passes in training under autocast.
    :ivar channels_last: layout of convolutions.
    """

    device: str = "cpu"
    precision: str = "float32"
    channels_last: bool = False

    @classmethod
    def of(cls, scale: str, device: str) -> Where:
        """Return what a scale does on a device: ``full`` on a GPU is fast, all else is plain."""
        fast = scale == "full" and torch.device(device).type == "cuda"
        return cls(device, "bfloat16" if fast else "float32", fast)

    def casting(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes in training."""
        if self.precision == "float32":
            return nullcontext()
        # Without a cache: it would keep weights as they were when the context was entered.
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, cache_enabled=False)

    def place(self, network: nn.Module) -> nn.Module:
        """Bring a network there, in the layout."""
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network.to(self.device)

    def switches(self) -> dict[str, Any]:
        """Return the arguments of ``CETLStrategy``."""
        return {
            "device": self.device,
            "precision": self.precision,
            "channels_last": self.channels_last,
        }


HERE = Where()
