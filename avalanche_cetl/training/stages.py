"""The stages of a round, what listens to them, and small tools of their loops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_cetl.information.processes import Processes

if TYPE_CHECKING:
    from avalanche_cetl.training.strategy import CETLStrategy


class Stage(Enum):
    """The stages of Algorithm 1, and the single step that ``joint`` and ``two_step`` take."""

    SOURCE = "stage 1"  #: T1 learns L_rs
    COUPLED = "stage 2"  #: T1 and T2 learn L_rt
    CLASSIFY = "stage 3"  #: T2 learns L_c
    MERGED = "merged"  #: several losses in one step


class CoupledStep(NamedTuple):
    """What stage 2 computed on a mini-batch of N target images.

    :ivar images: x, ``(N, C, H, W)``.
    :ivar features: S's features ``(N, dim)``; None without S.
    :ivar goal: T1(S(x)), detached; without S, x itself.
    :ivar reconstruction: T1(T2(x)).
    :ivar logits: T2's, ``(N, K)``.
    :ivar goal_hidden: T1's hidden layers as read from S's code, detached; empty without S, and
        where no plugin says ``reads_decoder_hidden = True``.
    :ivar hidden: the same as read from T2's code.
    :ivar labels: ``(N,)``, -1 where there is none.
    :ivar tasks: task labels, ``(N,)``.
    """

    images: Tensor
    features: Tensor | None
    goal: Tensor
    reconstruction: Tensor
    logits: Tensor
    goal_hidden: list[Tensor]
    hidden: list[Tensor]
    labels: Tensor
    tasks: Tensor


class CETLPlugin(SupervisedPlugin):
    """Base class of plugins that also listen to the stages of a round.

    The callbacks find the stage in ``strategy.stage``. With ``alternate="epoch"`` a stage
    is one pass over its data, with ``"iteration"`` one mini-batch. A plugin that reads T1's
    hidden layers (``strategy.coupled``) sets ``reads_decoder_hidden``.
    """

    reads_decoder_hidden: bool = False

    def before_stage(self, strategy: CETLStrategy, *args: Any, **kwargs: Any) -> Any:
        """Call before each stage."""

    def after_stage(self, strategy: CETLStrategy, *args: Any, **kwargs: Any) -> Any:
        """Call after each stage."""

    def after_step(self, strategy: CETLStrategy, *args: Any, **kwargs: Any) -> Any:
        """Call after each step in stages 1 and 2; in the others ``after_update`` is called."""

    def after_round(self, strategy: CETLStrategy, *args: Any, **kwargs: Any) -> Any:
        """Call after each round, when metrics, evaluation and clock are done with it."""


class Means:
    """Running means of named scalars, weighted by rows."""

    def __init__(
        self, sums: Mapping[str, float] | None = None, rows: Mapping[str, int] | None = None
    ) -> None:
        self._sums: dict[str, float] = defaultdict(float, sums or {})
        self._rows: dict[str, int] = defaultdict(int, rows or {})

    def add(self, name: str, value: float, rows: int) -> None:
        """Take one mean over so many rows in."""
        self._sums[name] += value * rows
        self._rows[name] += rows

    def merge(self, processes: Processes) -> None:
        """Take in what the other processes counted; all do so at once."""
        if processes.alone:
            return
        found = processes.meet((dict(self._sums), dict(self._rows)))
        self._sums.clear()
        self._rows.clear()
        for sums, rows in found:
            for name in sums:
                self._sums[name] += sums[name]
                self._rows[name] += rows[name]

    def result(self) -> dict[str, float]:
        """Give the means so far."""
        return {
            name: total / rows for name, total in self._sums.items() if (rows := self._rows[name])
        }


@contextmanager
def lone_sample(model: nn.Module, rows: int) -> Iterator[None]:
    """BatchNorm has no batch statistics of a single row: use the running ones for it."""
    norms = []
    if rows == 1:
        norms = [
            m
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
        ]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def cycle(loader: Iterable[Any], steps: int) -> Iterator[Any]:
    """Give so many batches, starting the loader again when it ends."""
    done = 0
    while done < steps:
        for batch in loader:
            yield batch
            done += 1
            if done == steps:
                return
