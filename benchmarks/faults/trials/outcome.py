"""What trials share: small data, a saved run, and how an outcome is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avalanche_cetl import save_checkpoint, transfer_benchmark
from benchmarks.faults.subject import digits, make

Trial = Callable[[Path], str]


def benchmark(images: Tensor | None = None, **arguments: Any) -> Any:
    """Make a small transfer benchmark of digits."""
    x, y = digits(48)
    return transfer_benchmark((x if images is None else images, y), digits(20, 200), **arguments)


def refused(kind: type[Exception], work: Callable[[], Any], told: str) -> str:
    """See that a piece of work ends in an error of a kind whose message says what is wrong."""
    try:
        work()
    except kind as problem:
        assert told in str(problem), f"the message does not say {told!r}: {problem}"
        return f"{type(problem).__name__}: {str(problem)[:120]}"
    raise AssertionError("nothing was said")


def saved(folder: Path, **arguments: Any) -> Path:
    """Train a little and save a checkpoint; return its path."""
    strategy = make(train_epochs=1, **arguments)
    strategy.train(benchmark().train_stream, eval_streams=[])
    save_checkpoint(strategy, folder / "x.safetensors")
    return folder / "x.safetensors"


def finite(strategy: Any) -> str:
    """See that a strategy has trained without breaking."""
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
    assert all(value == value for value in strategy.round_losses.values())
    return "trained, all weights and losses finite"


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put something else in the place of an attribute, for a while."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
