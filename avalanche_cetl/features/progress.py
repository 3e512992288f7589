"""How far an extraction is: a bar in a terminal or notebook, a line every half minute elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

#: Seconds between two lines where the output is no terminal.
LINES_EVERY = 30.0


class _Lines:
    """A file in which every state of a bar becomes a line of its own."""

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, text: str) -> None:
        """Write a line; nothing for what only moves the cursor."""
        line = text.strip()
        if line:
            self.file.write(f"{line}\n")

    def flush(self) -> None:
        """Let the file write what it holds."""
        self.file.flush()


def progress_bar(total: int, shown: bool, file: TextIO | None = None) -> tqdm:
    """Return a bar that counts images and is seen from the first moment on.

    :param total: images.
    :param shown: False: nothing is written.
    :param file: default: standard error.
    """
    file = sys.stderr if file is None else file
    moves = file.isatty() or issubclass(tqdm, tqdm_notebook)
    return tqdm(
        total=total,
        unit="img",
        desc="source features",
        file=file if moves else _Lines(file),
        mininterval=0.1 if moves else LINES_EVERY,
        maxinterval=10.0 if moves else LINES_EVERY,
        miniters=1,
        **({} if shown else {"disable": True}),  # else tqdm's own TQDM_DISABLE decides
    )
