"""The state of an evaluator: its metrics, what they have emitted, and its text logs."""

from __future__ import annotations

import sys
from typing import Any

from avalanche.training.plugins import EvaluationPlugin

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.plain import is_plain
from avalanche_cetl.checkpoints.putting import Putter
from avalanche_cetl.checkpoints.taking import Taker


def evaluator_state(evaluator: EvaluationPlugin, taker: Taker) -> dict[str, Any]:
    """Return what metrics hold, what they have emitted, and how far text logs have come.

    :raises CheckpointError: when a metric has state that cannot be kept.
    """
    return {
        "metrics": [
            {"type": type(metric).__qualname__, "state": taker.take(metric, str(metric))}
            for metric in evaluator.metrics
        ],
        "all": {
            name: (list(xs), [value if is_plain(value) else None for value in values])
            for name, (xs, values) in evaluator.all_metric_results.items()
        },
        "last": {
            name: value for name, value in evaluator.last_metric_results.items() if is_plain(value)
        },
        "active": evaluator.active,
        "logs": [_log_state(logger) for logger in evaluator.loggers],
    }


def set_evaluator_state(evaluator: EvaluationPlugin, state: dict[str, Any], putter: Putter) -> None:
    """Put the state of an evaluator back.

    :raises CheckpointError: when the evaluator has other metrics.
    """
    mine = [type(metric).__qualname__ for metric in evaluator.metrics]
    its = [kept["type"] for kept in state["metrics"]]
    if mine != its:
        raise CheckpointError(f"the evaluator has the metrics {mine}, in the checkpoint {its}.")
    for metric, kept in zip(evaluator.metrics, state["metrics"], strict=True):
        putter.put(metric, kept["state"], str(metric))
    results = evaluator.all_metric_results
    results.clear()
    for name, (xs, values) in state["all"].items():
        results[str(name)] = (list(xs), list(values))
    evaluator.last_metric_results = dict(state["last"])
    evaluator.active = bool(state["active"])
    for logger, kept in zip(evaluator.loggers, state["logs"], strict=False):
        _set_log(logger, kept)


def _log_state(logger: Any) -> dict[str, Any] | None:
    """Return how far a text log in a file has come; None for other loggers."""
    file = getattr(logger, "file", None)
    if file is None or file in (sys.stdout, sys.stderr) or not _seekable(file):
        return None
    file.flush()
    return {"end": int(file.tell())}


def _set_log(logger: Any, kept: dict[str, Any] | None) -> None:
    """Cut off what a text log holds of the rounds that are run again."""
    file = getattr(logger, "file", None)
    if kept is None or file is None or file in (sys.stdout, sys.stderr) or not _seekable(file):
        return
    end = int(kept["end"])
    file.seek(0, 2)
    if 0 <= end < file.tell():
        file.seek(end)
        file.truncate()


def _seekable(file: Any) -> bool:
    try:
        return bool(file.seekable() and file.writable())
    except (AttributeError, ValueError, OSError):
        return False
