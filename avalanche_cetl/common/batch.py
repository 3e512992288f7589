"""Batch: the rows of a mini-batch, and what a stage computes on them."""

from __future__ import annotations

from torch import Tensor

from avalanche_cetl.common.warning import warn_caller


class Batch:
    """N rows of a mini-batch of one process: stages make it, plugins add losses for it.

    :param tensors: as the loader gave them: images, labels, ..., task labels.
    :param features: S's ``(N, dim)``, where they are stored or were computed.
    :param share: this process's rows over the mean per process: the factor that makes a mean over
        its rows count as it should in the mean over processes. 0 where the mini-batch has no row
        for this process, 1 for one process.
    :param rows: rows of the mini-batch in all processes together.
    :ivar latest: T2's output in its latest pass of the step; None where it has not run.
    :ivar reconstruction_target: in stage 2 T1(S(x)), detached; without S, x itself. None in stages
        without it, as the next ones.
    :ivar reconstruction: T1(T2(x)).
    :ivar hidden_target: T1's hidden layers as read from S's code, detached; empty without S, and
        where no plugin has ``reads_decoder_hidden = True``.
    :ivar hidden: the same as read from T2's code.
    """

    def __init__(
        self,
        tensors: list[Tensor],
        features: Tensor | None = None,
        share: float = 1.0,
        rows: int = 0,
    ):
        self.tensors, self.features, self.share, self.rows = tensors, features, share, rows
        self.begin_step()

    def begin_step(self) -> None:
        """Forget what another stage, or step, computed: its graph is gone."""
        self.latest: Tensor | None = None
        self.reconstruction_target: Tensor | None = None
        self.reconstruction: Tensor | None = None
        self.hidden_target: list[Tensor] = []
        self.hidden: list[Tensor] = []

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

    @property
    def counted(self) -> int:
        """Return the rows that count in means: none where no row belongs to this process."""
        return len(self) if self.share else 0

    @property
    def logits(self) -> Tensor:
        """Return T2's logits, ``(N, K)``; a stage that runs T2 on other rows assigns them.

        :raises ValueError: where T2 has not run on these rows.
        """
        if self.latest is None:
            raise ValueError("T2 has not run on this mini-batch, so it has no logits.")
        if isinstance(self.latest, Tensor) and len(self.latest) != len(self):
            raise ValueError(
                f"the stage ran T2 on {len(self.latest)} rows for a mini-batch of {len(self)}, so "
                "it is open which logits are of which row: let the stage's losses() set "
                "batch.logits to the (N, K) logits of the mini-batch's N rows, or leave out "
                "plugins that read them."
            )
        return self.latest

    @logits.setter
    def logits(self, value: Tensor) -> None:
        self.latest = value

    @property
    def goal(self) -> Tensor | None:
        """Return ``reconstruction_target`` by its earlier name."""
        warn_caller("goal is called reconstruction_target now.", DeprecationWarning)
        return self.reconstruction_target

    @property
    def goal_hidden(self) -> list[Tensor]:
        """Return ``hidden_target`` by its earlier name."""
        warn_caller("goal_hidden is called hidden_target now.", DeprecationWarning)
        return self.hidden_target
