"""An ONNX file, exported from anywhere, as the frozen source network S."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from avalanche_cetl.common.validation import check_choice
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.preprocessing import Interpolation, Preprocessing
from avalanche_cetl.encoders.scores import Scores

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
}


class ONNXEncoder(Encoder):
    """A network in an ONNX file as a frozen source network, run by onnxruntime.

    The file has one input, with a free batch axis, in half, single or double precision: images
    ``(N, C, H, W)``, or ``(N, H, W, C)`` as in TensorFlow. The encoder itself always reads
    ``(N, C, H, W)`` and moves the channels where the file reads them last. Custom operators are
    not loaded. Needs ``pip install "avalanche-cetl[onnx]"``.

    :param path: the ``.onnx`` file; files beside it that hold its weights belong to it.
    :param output: name of the output that holds the features, flattened to one vector an
        image; default: the file's only output.
    :param logits: name of the output that holds S's own logits ``(N, K)``, if any; or their
        probabilities, whose logits are then taken.
    :param image_size: side in pixels to resize to; needed where the file leaves it free. Default:
        the file's own height and width.
    :param mean: per channel, subtracted from images in [0, 1]; default 0.
    :param std: per channel, divided by; default 1.
    :param interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
    :param input_mean: per-channel mean that the benchmark's transform subtracted; None for
        images in [0, 1].
    :param input_std: per-channel deviation that it divided by.
    :param providers: onnxruntime's execution providers; default: the CPU's.
    :param channels_last: whether the file reads ``(N, H, W, C)``; default: found from the
        input's declared shape (two equal sides, and 1 to 4 channels), and asked for where that
        leaves it open.
    :ivar dim: number of features.
    :ivar num_classes: width of ``logits``, or None.
    :ivar channels_last: whether the file reads ``(N, H, W, C)``.
    :raises ImportError: without onnxruntime; names the extra.
    :raises ValueError: for a file that is missing or no ONNX model, an unknown output or
        interpolation, or another input than a batch of images.
    """

    _may_write = False  # preprocessing makes a new tensor

    def __init__(
        self,
        path: str | Path,
        output: str | None = None,
        *,
        logits: str | None = None,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: Interpolation = "bilinear",
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        channels_last: bool | None = None,
    ):
        super().__init__()
        self.path, self.providers = Path(path).expanduser(), list(providers)
        if not self.path.is_file():
            raise ValueError(f"path={str(path)!r}: there is no such file.")
        check_choice("interpolation", interpolation, get_args(Interpolation))
        self._hash = _content(self.path)
        self._session = self._open()
        self.output = self._choose(output)
        self.logits_output = logits if logits is None else self._choose(logits)
        channels, size = self._input_shape(image_size, channels_last)
        self.preprocessing = Preprocessing(
            channels, size, mean, std, interpolation, input_mean, input_std
        )
        self.freeze()
        if channels is None or size is None:
            raise ValueError(
                f"the input of {self.path.name} leaves channels, height or width free: say which "
                "images it reads with image_size= (its channels have to be in the file)."
            )
        features = self._try(torch.zeros(2, channels, *size))
        self.dim = features.shape[1]
        self.num_classes = None
        self._outputs = Scores(f"logits={logits!r} of {self.path.name}")
        if self.logits_output is not None:
            found = self._run(torch.zeros(2, channels, *size), self.logits_output)
            if found.dim() != 2:
                raise ValueError(f"logits={logits!r} has shape {tuple(found.shape)}, not (N, K).")
            self.num_classes = found.shape[1]

    def extra_repr(self) -> str:
        """Return output and hash of the file, for ``print(model)`` and the fingerprint."""
        about = f"output={self.output!r}, sha256={self._hash[:16]}"
        return f"{about}, channels_last=True" if self.channels_last else about

    def preprocess(self, x: Tensor) -> Tensor:
        """Return resized and normalised images."""
        result: Tensor = self.preprocessing(x)
        return result

    def encode(self, x: Tensor) -> Tensor:
        """Return the named output, flattened to ``(N, dim)``."""
        return self._run(x, self.output).flatten(1)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the output named as logits, ``(N, num_classes)``."""
        if self.logits_output is None:
            return super().logits(x)
        name = self.logits_output
        return self._outputs.read(lambda images: self._run(images, name), self.preprocess(x))

    @property
    def no_logits(self) -> str:
        """Return why S gives no logits: which outputs the file has."""
        names = [output.name for output in self._session.get_outputs()] if self._session else []
        return (
            f"{self.path.name} was read without its logits: name the output that holds them with "
            f"logits=, one of {names}."
        )

    def __getstate__(self) -> dict[str, Any]:
        # A session cannot be copied; a process that gets the encoder opens the file again.
        return {**self.__dict__, "_session": None}

    def _open(self) -> Any:
        try:
            import onnxruntime
        except ImportError as problem:
            raise ImportError(
                "ONNXEncoder needs onnxruntime: pip install 'avalanche-cetl[onnx]'."
            ) from problem
        try:
            return onnxruntime.InferenceSession(str(self.path), providers=self.providers)
        except Exception as problem:  # onnxruntime's errors share no public base class
            raise ValueError(
                f"onnxruntime cannot run {str(self.path)!r} (custom operators are not loaded): "
                f"{problem}"
            ) from problem

    def _choose(self, name: str | None) -> str:
        names = [output.name for output in self._session.get_outputs()]
        if name is None and len(names) == 1:
            result: str = names[0]
            return result
        if name is None or name not in names:
            raise ValueError(f"output={name!r}: {self.path.name} has the outputs {names}.")
        return name

    def _input_shape(
        self, image_size: int | None, channels_last: bool | None
    ) -> tuple[int | None, tuple[int, int] | None]:
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape)
        found = f"{self.path.name} reads {[(i.name, i.type, i.shape) for i in inputs]}"
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in _TYPES:
            raise ValueError(
                f"{found}; needed is one input, float images (N, C, H, W) or (N, H, W, C)."
            )
        self._type = _TYPES[inputs[0].type]
        if isinstance(shape[0], int):
            raise ValueError(
                f"{found}: its batch axis is fixed to {shape[0]}; export it with a dynamic first "
                "axis."
            )
        self.channels_last = (
            _reads_channels_last(shape[1:], found) if channels_last is None else channels_last
        )
        if self.channels_last:
            shape = [shape[0], shape[3], shape[1], shape[2]]
        channels = shape[1] if isinstance(shape[1], int) else None
        fixed = tuple(side for side in shape[2:] if isinstance(side, int))
        if len(fixed) == 2:
            if image_size is not None and fixed != (image_size, image_size):
                raise ValueError(f"image_size={image_size}, but {found}.")
            return channels, (fixed[0], fixed[1])
        return channels, None if image_size is None else (image_size, image_size)

    def _try(self, x: Tensor) -> Tensor:
        try:
            features = self.encode(x)
        except Exception as problem:  # as above
            raise ValueError(
                f"{self.path.name} does not run on a batch of two images: {problem}"
            ) from problem
        if len(features) != len(x):
            raise ValueError(
                f"output {self.output!r} of {self.path.name} has {len(features)} rows for "
                f"{len(x)} images: it keeps no batch axis."
            )
        return features

    def _run(self, x: Tensor, output: str) -> Tensor:
        if self._session is None:
            if _content(self.path) != self._hash:
                raise ValueError(f"{str(self.path)!r} has changed since the encoder was made.")
            self._session = self._open()
        name = self._session.get_inputs()[0].name
        given = x.movedim(1, 3) if self.channels_last else x
        image = np.ascontiguousarray(given.detach().to("cpu", self._type).numpy())
        (found,) = self._session.run([output], {name: image})
        return torch.from_numpy(np.ascontiguousarray(found)).float().to(x.device)


def _reads_channels_last(shape: Sequence[Any], found: str) -> bool:
    """Whether a declared shape (without batch axis) is (H, W, C); its free sides are no ints.

    There are two signs: the two sides of an image are mostly equal (or both free), and channels
    are mostly 1 to 4. The shape is decided by one sign alone, or by two that agree.
    """
    sides = [side if isinstance(side, int) else None for side in shape]
    square = (sides[1] == sides[2], sides[0] == sides[1])
    few = tuple(side is not None and 1 <= side <= 4 for side in (sides[0], sides[2]))
    votes = {last for first, last in (square, few) if first != last}
    if len(votes) == 1:
        return votes.pop()
    if sides == [None, None, None]:
        return False  # the free axis of channels is refused as such
    raise ValueError(
        f"{found}: its shape leaves open whether the channels come first, (N, C, H, W), or last, "
        "(N, H, W, C); say which with channels_last=False or True."
    )


def _content(path: Path) -> str:
    """Return a hash of a file and of the files beside it that hold its weights."""
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    for location in sorted(_locations(content)):
        part = path.parent / location
        if os.path.isfile(part):  # Path.is_file() raises for a name that is too long
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _locations(content: bytes) -> set[str]:
    """Return where a file says that its weights lie, as paths from its folder.

    In protobuf such an entry (``TensorProto.external_data``) is the key ``location`` and a text,
    each after its field's tag and its length, seven bits a byte, the lowest first. Weights may
    hold the same bytes by chance: then the path leads to no file.
    """
    found = set()
    for entry in re.finditer(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])", content):
        size = sum((byte & 127) << 7 * place for place, byte in enumerate(entry[1]))
        text = content[entry.end() : entry.end() + size]
        with suppress(UnicodeDecodeError):
            found.add(text.decode())
    return found
