"""Take turns with a clock; what counts is ratios within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def timed(jobs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Measure the seconds of every job, in turn; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            took = clock(job, device)
            if turn:
                seconds[name].append(took)
    return seconds


def clock(job: Callable[[], Any], device: str) -> float:
    """Measure the seconds of one run."""
    wait(device)
    start = time.perf_counter()
    job()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Let a GPU finish what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Compute median and range over rounds of a job's time over the base's in the same round."""
    result = {}
    for name, times in seconds.items():
        parts = [t / b for t, b in zip(times, seconds[base], strict=True)]
        result[name] = {
            "median": statistics.median(parts), "lowest": min(parts), "highest": max(parts)
        }  # fmt: skip
    return result


def spread(row: dict[str, float]) -> str:
    """Write a ratio with its range."""
    return f"{row['median']:.2f} x ({row['lowest']:.2f} to {row['highest']:.2f})"
