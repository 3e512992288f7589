"""CheckpointPlugin: a checkpoint every few rounds, the newest ones and the best one kept."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from avalanche_cetl.checkpoints.checkpoint import check_keepable, save_checkpoint
from avalanche_cetl.checkpoints.codec import SUFFIX, CheckpointError, checkpoints_in
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.common.validation import check_choice
from avalanche_cetl.plugins.base import CETLPlugin, training_of

BEST = f"best{SUFFIX}"


class CheckpointPlugin(CETLPlugin):
    """Saves :class:`CETLStrategy` after rounds, into ``folder/checkpoint-000012.safetensors``.

    The number is that of rounds since the first call of ``train()``, over all experiences. With
    ``best`` the checkpoint of the highest (or lowest) score is also kept as
    ``best.safetensors``. ``load_checkpoint(strategy, folder)`` takes the newest that is whole.
    Those with higher numbers, of a run that was given up for this one, are renamed to
    ``earlier-checkpoint-000012.safetensors`` and kept.

    :param folder: where; it is made when it is not there. A leading ``~`` is the home folder.
    :param every: rounds between two checkpoints, >= 1. The last round of an experience always
        has one.
    :param keep: number of newest checkpoints that stay, >= 1.
    :param best: the score: the name of a metric of the evaluator, or the beginning of one metric's
        name alone (labelled, as ``"Top1_Acc_Stream"``, or label-free, as ``validator_metrics()``
        give), or a function ``(strategy) -> float``. A metric is read after the rounds that emit
        it: one of ``eval()`` with ``eval_every=1`` after each. None: no best one.
    :param mode: ``"max"`` or ``"min"``: which score is best.
    :param ignore: see :func:`save_checkpoint`.
    :ivar best_score: the best so far; None before there is one.
    :ivar rounds: rounds so far.
    :raises ValueError: for arguments out of range, and in training for a name that no metric has,
        or that several begin with: one for each stream, experience or task.
    :raises CheckpointError: when training begins, for plugins and metrics whose state cannot be
        kept; in training, see :func:`save_checkpoint`.
    """

    supports_distributed = True
    #: What a plugin that saves begins with in a run that goes on, with this plugin or others.
    checkpoint_counters = ("rounds", "best_score")

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int = 1,
        keep: int = 2,
        best: str | Callable[[Any], float] | None = None,
        mode: Literal["max", "min"] = "max",
        *,
        ignore: Sequence[str] = (),
    ):
        super().__init__()
        if every < 1 or keep < 1:
            raise ValueError(f"every={every} and keep={keep} have to be >= 1.")
        check_choice("mode", mode, ("max", "min"))
        self.folder = Path(folder).expanduser()
        self.every, self.keep, self.mode = every, keep, mode
        self.best, self.ignore = best, tuple(ignore)
        self.best_score: float | None = None
        self.rounds = 0
        self._before: dict[str, Any] = {}  # what the evaluator had emitted when the round began
        self._followed: set[str] = set()  # metrics whose name begins as best says

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Check that the strategy can be saved, and clear what a killed process left."""
        if not training_of(strategy).has_stages:
            raise CheckpointError(
                f"CheckpointPlugin saves CETLStrategy; a {type(strategy).__name__} can be saved "
                "with save_checkpoint() outside of train()."
            )
        check_keepable(strategy, self.ignore)
        if Processes.started().rank == 0 and self.folder.is_dir():
            for left in self.folder.glob(f".*{SUFFIX}.*.tmp"):
                left.unlink(missing_ok=True)

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note which metrics are of earlier weights."""
        self._before = dict(getattr(strategy.evaluator, "last_metric_results", {}))

    def after_round(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Save, where it is time."""
        self.rounds += 1
        improved = self._improved(strategy)
        ended = strategy.clock.train_exp_epochs >= strategy.train_epochs
        last = ended or strategy._stop_training
        if improved:
            save_checkpoint(strategy, self.folder / BEST, ignore=self.ignore)
        if last or self.rounds % self.every == 0:
            newest = self.folder / f"checkpoint-{self.rounds:06}{SUFFIX}"
            save_checkpoint(strategy, newest, ignore=self.ignore)
            if Processes.started().rank == 0:
                found = checkpoints_in(self.folder)
                count = found.index(newest) + 1
                for path in found[: max(0, count - self.keep)]:
                    path.unlink(missing_ok=True)
                for path in found[count:]:
                    path.replace(path.with_name(f"earlier-{path.name}"))

    def _improved(self, strategy: Any) -> bool:
        if self.best is None:
            return False
        score = self.best(strategy) if callable(self.best) else self._metric(strategy)
        if score is None or not math.isfinite(score):
            return False
        sign = 1 if self.mode == "max" else -1
        if self.best_score is not None and sign * score <= sign * self.best_score:
            return False
        self.best_score = float(score)
        return True

    def _metric(self, strategy: Any) -> float | None:
        assert isinstance(self.best, str)
        results = strategy.evaluator.last_metric_results
        found = [name for name in results if name.startswith(self.best)]
        if not found:
            known = ", ".join(sorted(results)) or "none yet"
            raise ValueError(
                f"best={self.best!r} is no metric of the evaluator, which has emitted: {known}. "
                "A metric of eval() needs eval_every=1."
            )
        # Every emission puts a new object there: the same one was emitted before the round.
        emitted = {name for name in found if results[name] is not self._before.get(name)}
        if self.best in results:
            emitted &= {self.best}
        self._followed |= emitted
        if len(self._followed) > 1:
            raise ValueError(
                f"best={self.best!r} is the beginning of several metrics: "
                f"{', '.join(sorted(self._followed))}. Give the whole name of one, or a function "
                "(strategy) -> float."
            )
        return float(results[emitted.pop()]) if emitted else None
