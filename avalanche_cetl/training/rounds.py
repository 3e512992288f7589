"""How a round goes through its mini-batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def cycle(loader: Iterable[Any], steps: int) -> Iterator[Any]:
    """Give so many batches, starting the loader again when it ends."""
    done = 0
    while done < steps:
        for batch in loader:
            yield batch
            done += 1
            if done == steps:
                return
