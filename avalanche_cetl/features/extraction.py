"""How features are computed: images in batches, shard by shard, through the encoder; a bar.

In a terminal or notebook the bar moves; elsewhere it writes a line every half minute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal, TextIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.features import shards
from avalanche_cetl.features.views import Images, SeededView

#: Names of the types that features can be stored in.
StoredType = Literal["float16", "float32"]
DTYPES = {"float16": torch.float16, "float32": torch.float32}
#: Seconds between two lines where the output is no terminal.
LINES_EVERY = 30.0


@dataclass(frozen=True)
class Extraction:
    """Settings of the computation of features.

    :ivar batch_size: images of one forward pass.
    :ivar num_workers: processes that load images.
    :ivar device: where the encoder runs; None for where it is.
    :ivar progress: show a progress bar; where there is no terminal, a line every half minute.
    :raises ValueError: for values out of range.
    """

    batch_size: int = 64
    num_workers: int = 0
    device: str | torch.device | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"batch_size={self.batch_size} has to be >= 1, num_workers={self.num_workers} >= 0."
            )


def loaded(
    view: SeededView, numbers: Sequence[int], extraction: Extraction
) -> Iterator[tuple[int, Iterator[Tensor]]]:
    """Load the images of some shards, one shard after the other.

    :param view: of all images.
    :param numbers: of the shards.
    :param extraction: batch size and worker processes.
    :return: for each shard its number, and an iterator over its batches ``(N, C, H, W)``.
    :raises ValueError: for images of several shapes.
    """
    batches = shards.batches(numbers, len(view), extraction.batch_size)
    loader = DataLoader(
        Images(view),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=extraction.num_workers,
        collate_fn=_stack,
        generator=torch.Generator(),  # leaves the global one alone
    )
    pairs = zip((rows.start // shards.SHARD_ROWS for rows in batches), loader, strict=True)
    for number, group in groupby(pairs, key=itemgetter(0)):
        yield number, (images for _, images in group)


def _stack(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise ValueError(
            f"the images have several shapes, {sorted(shapes)}; resize them in the benchmark's "
            "transforms."
        )
    return torch.stack(images)


def encoded(encoder: Encoder, images: Tensor, dtype: StoredType, rows: Sequence[int]) -> Tensor:
    """Return the features of a batch as they are stored, ``(N, dim)`` in memory.

    :param encoder: S.
    :param images: ``(N, C, H, W)``, on its device.
    :param dtype: a name in ``DTYPES``.
    :param rows: of the images, for errors.
    :raises ValueError: for features of another shape, or that are not finite in this type.
    """
    found = encoder(images).float().cpu()
    if found.shape != (len(images), encoder.dim):
        raise ValueError(
            f"the encoder gave {tuple(found.shape)} for {len(images)} images; expected "
            f"({len(images)}, {encoder.dim})."
        )
    stored: Tensor = found.to(DTYPES[dtype])
    finite = torch.isfinite(stored).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        over = torch.isfinite(found[first]).all()
        remedy = "too large for float16: store them with dtype='float32'"
        raise ValueError(
            f"the features of row {rows[first]} are "
            f"{remedy if over else 'not finite: clean the image or the network'}."
        )
    return stored


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


def progress_bar(total: int, shown: bool) -> tqdm:
    """Return a bar on standard error that counts images and is seen from the first moment on.

    :param total: images.
    :param shown: False: nothing is written.
    """
    file = sys.stderr
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
