"""The contract between a strategy and its plugins: the stages, and what a plugin may read."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from avalanche.core import SupervisedPlugin
from torch import Tensor


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

    def before_stage(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call before each stage."""

    def after_stage(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call after each stage."""

    def after_step(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call after each step in stages 1 and 2; in the others ``after_update`` is called."""

    def after_round(self, strategy: Any, *args: Any, **kwargs: Any) -> Any:
        """Call after each round, when metrics, evaluation and clock are done with it."""
