"""Batch: a mini-batch, and all that a stage and the loop around it need of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from avalanche_cetl.plugins.contract import CoupledStep


@dataclass
class Batch:
    """A mini-batch of one process.

    :ivar tensors: as the loader gave them: images, labels, ..., task labels.
    :ivar features: S's features ``(N, dim)``, where they are stored or were computed.
    :ivar logits: T2's ``(N, K)``, in stage 3 once its forward pass has run.
    :ivar share: this process's rows over the mean per process: the factor that makes a mean over
        its rows count as it should in the mean over processes. 0 where the mini-batch has no row
        for this process, 1 for one process.
    :ivar rows: rows of the mini-batch in all processes together.
    :ivar coupled: what a stage that runs T2 on target rows computed on it; None before.
    :ivar beside: the mini-batch of target rows that goes with this one of labelled rows, in a
        step that reads both.
    :ivar labelled: False in such a step where the experience has no labelled row: then these are
        the target rows once more, and only what reads those is computed.
    """

    tensors: list[Any]
    share: float = 1.0
    rows: int = 0
    features: Tensor | None = None
    logits: Tensor | None = None
    coupled: CoupledStep | None = None
    beside: Batch | None = None
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.tensors[0])

    @property
    def images(self) -> Tensor:
        """Return x, ``(N, C, H, W)``."""
        return self.tensors[0]

    @property
    def labels(self) -> Tensor:
        """Return the labels ``(N,)``, -1 where there is none."""
        return self.tensors[1]

    @property
    def tasks(self) -> Tensor:
        """Return the task labels ``(N,)``."""
        return self.tensors[-1]

    def without_decoder(self, logits: Tensor) -> CoupledStep:
        """Return what a stage in which T1 does not run computed on these rows.

        Goal and reconstruction are the image.

        :param logits: T2's, ``(N, K)``.
        """
        return CoupledStep(
            images=self.images,
            features=self.features,
            goal=self.images,
            reconstruction=self.images,
            logits=logits.float(),
            goal_hidden=[],
            hidden=[],
            labels=self.labels,
            tasks=self.tasks,
        )

    def share_of(self, rows: str) -> float:
        """Return the share of the ``"target"`` or ``"labelled"`` rows of the step."""
        return self.beside.share if self.beside is not None and rows == "target" else self.share

    @property
    def counted(self) -> int:
        """Return the rows that count in means: none where no row belongs to this process."""
        return len(self) if self.share else 0
