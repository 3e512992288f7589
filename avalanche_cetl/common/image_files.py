"""The images of a folder, for benchmarks and for the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from avalanche_cetl.common.images import picture_tensor, recoloured, rgb_picture
from avalanche_cetl.common.warning import warn_caller

logger = logging.getLogger(__name__)

#: Endings of image files, in lower case: torchvision's, and what is common beside them.
ENDINGS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".pbm", ".pnm", ".jp2", ".avif")
#: What systems and programs leave in folders; names with a dot before them count too.
_CLUTTER = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")
_NAMED = 5  # names in one message
_READ = f"endings that are read: {', '.join(ENDINGS)}; hidden files are passed over"


class ImageFiles(Dataset[Any]):
    """Images of a folder, in colour: of its class folders, or the files right in it.

    Rows are in the order of torchvision's ImageFolder: classes by name, files by name in each
    class and the folders below it. Hidden files and folders, and what systems leave behind
    (``.ipynb_checkpoints``, ``__MACOSX``, ``Thumbs.db``), are no classes and no images; a line of
    the log (``INFO``) has their names. What else is passed over is counted and named in one
    warning.

    Every picture is made upright, flat and RGB (:mod:`avalanche_cetl.common.images`); of a file
    with several frames the first is read.

    :param folder: with one folder a class, or with images right in it (label -1). ``~`` is the
        user's home.
    :param transform: from a PIL image in RGB, 8 bits a channel, to what is given. None: a tensor
        ``(3, H, W)`` of floats in [0, 1], in the full depth of 16-bit and float files.
    :ivar files: paths relative to the folder, in order of rows.
    :ivar labels: class index of every file.
    :ivar classes: names of the classes; empty without class folders.
    :raises ValueError: when there is no such folder, no image in it, or a class without one.
    """

    def __init__(self, folder: str | Path, transform: Callable[[Any], Any] | None = None):
        self.folder, self.transform = Path(folder).expanduser(), transform
        if not self.folder.is_dir():
            raise ValueError(f"{str(self.folder)!r}: there is no such folder.")
        entries = sorted(self.folder.iterdir(), key=lambda entry: entry.name)
        self.classes = [e.name for e in entries if e.is_dir() and not _is_clutter(e.name)]
        if self.classes:
            used = set(self.classes)
            passed = [e.name for e in entries if e.name not in used]
            self.files, self.labels = self._in_classes(passed)
        else:
            self.files = [e.name for e in entries if e.is_file() and self._is_image(str(e))]
            self.labels = [-1] * len(self.files)
            used = set(self.files)
            passed = [e.name for e in entries if e.name not in used]
        clutter, other = _parted(passed)
        if not self.files:
            raise ValueError(
                f"{str(self.folder)!r} holds no image, neither in one folder a class nor right in "
                f"it; {_READ}.{_told(other)}"
            )
        if clutter:
            logger.info("%r: hidden or of a system:%s", str(self.folder), _told(clutter))
        if other:
            warn_caller(f"{str(self.folder)!r}:{_told(other)}")

    def _in_classes(self, passed: list[str]) -> tuple[list[str], list[int]]:
        def wanted(path: str) -> bool:
            if self._is_image(path):
                return True
            passed.append(os.path.relpath(path, self.folder))
            return False

        numbers = {name: number for number, name in enumerate(self.classes)}
        try:
            found = make_dataset(self.folder, numbers, is_valid_file=wanted)
        except FileNotFoundError as problem:
            raise ValueError(
                f"{str(self.folder)!r}: {str(problem).strip()} Every class needs one; {_READ}."
                f"{_told(_parted(passed)[1])}"
            ) from problem
        return [os.path.relpath(path, self.folder) for path, _ in found], [n for _, n in found]

    def _is_image(self, path: str) -> bool:
        parts = Path(path).relative_to(self.folder).parts
        return path.lower().endswith(ENDINGS) and not any(map(_is_clutter, parts))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            with Image.open(self.folder / self.files[index]) as image:
                if self.transform is None:
                    tensor = recoloured(picture_tensor(image)[None], 3)[0]
                    return tensor, self.labels[index]
                picture = rgb_picture(image)
        except Exception as problem:  # PIL raises its own, SyntaxError and others
            raise ValueError(
                f"row {index} of {self.folder}: {self.folder / self.files[index]} cannot be read "
                f"as an image: {problem}"
            ) from problem
        return self.transform(picture), self.labels[index]

    def read(self) -> list[Any]:
        """Read every image.

        :raises ValueError: when some cannot be read: their number, the first with their problems.
        """
        images, problems = [], []
        for index in range(len(self)):
            try:
                images.append(self[index][0])
            except ValueError as problem:
                problems.append(str(problem))
        if problems:
            raise ValueError(
                f"{len(problems)} of {len(self)} files cannot be read; move or mend them: "
                + "; ".join(problems[:_NAMED])
                + _and_more(problems)
            )
        return images


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _parted(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of the paths are hidden or left by systems, and which are not."""
    parted: tuple[list[str], list[str]] = [], []
    for name in names:
        parted[not any(map(_is_clutter, Path(name).parts))].append(name)
    return parted


def _told(names: Sequence[str]) -> str:
    """Return a sentence, after a space, that counts and names what is passed over, if it is any."""
    if not names:
        return ""
    kind = "entry" if len(names) == 1 else "entries"
    return f" {len(names)} {kind} passed over: {', '.join(names[:_NAMED])}{_and_more(names)}."


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
